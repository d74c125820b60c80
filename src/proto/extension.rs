//! The elements of `Sec-WebSocket-Extensions` (RFC 6455 §9.1) as pure data.
//!
//! One pass over the bytes, and a bounded number of items. What an extension's parameters mean is the
//! extension's own business: names and values are only told apart here.

use http::HeaderValue;

use super::http::{is_tchar, is_token};

/// One element of `Sec-WebSocket-Extensions`, not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) name: String,
    /// In order, repetitions kept; values are tokens, with or without quotes.
    pub(crate) params: Vec<(String, Option<String>)>,
}

/// The header breaks the grammar of RFC 6455 §9.1 or the limits below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Browsers offer one; a client that lists alternatives for permessage-deflate offers a handful.
const MAX_EXTENSIONS: usize = 16;
/// permessage-deflate knows four.
const MAX_PARAMS: usize = 16;

/// Parses the extension list that all these headers make together (RFC 6455 §9.1).
///
/// Empty elements between commas are skipped, and white space is let through around separators as
/// RFC 2616 did, whose grammar §9.1 borrows.
pub(crate) fn parse_extensions<'h>(
    values: impl IntoIterator<Item = &'h HeaderValue>,
) -> Result<Vec<Extension>, Malformed> {
    let mut extensions = Vec::new();
    for value in values {
        let mut cursor = Cursor {
            rest: value.as_bytes(),
        };
        while !cursor.at_end() {
            if cursor.eat(b',') {
                continue;
            }
            if extensions.len() == MAX_EXTENSIONS {
                return Err(Malformed);
            }
            extensions.push(cursor.extension()?);
            if !cursor.at_end() && !cursor.eat(b',') {
                return Err(Malformed);
            }
        }
    }
    Ok(extensions)
}

/// A tokenizer that only ever goes forward: each byte is consumed once or ends the parse.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// `extension = token *( ";" param )`
    fn extension(&mut self) -> Result<Extension, Malformed> {
        let name = self.token()?;
        let mut params = Vec::new();
        while self.eat(b';') {
            if params.len() == MAX_PARAMS {
                return Err(Malformed);
            }
            params.push(self.param()?);
        }
        Ok(Extension { name, params })
    }

    /// `param = token [ "=" ( token | quoted-string ) ]`
    fn param(&mut self) -> Result<(String, Option<String>), Malformed> {
        let name = self.token()?;
        let value = match self.eat(b'=') {
            true if self.eat(b'"') => Some(self.quoted()?),
            true => Some(self.token()?),
            false => None,
        };
        Ok((name, value))
    }

    fn token(&mut self) -> Result<String, Malformed> {
        self.skip_space();
        let end = self.rest.iter().position(|b| !is_tchar(*b));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        text(token)
    }

    /// Behind the opening quote. "When using the quoted-string syntax variant, the value after
    /// quoted-string unescaping MUST conform to the 'token' ABNF."
    fn quoted(&mut self) -> Result<String, Malformed> {
        let mut value = Vec::new();
        loop {
            match self.next().ok_or(Malformed)? {
                b'"' => return text(&value),
                b'\\' => value.push(self.next().ok_or(Malformed)?),
                byte => value.push(byte),
            }
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.skip_space();
        let tail = self.rest.strip_prefix(&[byte]);
        self.rest = tail.unwrap_or(self.rest);
        tail.is_some()
    }

    fn at_end(&mut self) -> bool {
        self.skip_space();
        self.rest.is_empty()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }
}

fn text(token: &[u8]) -> Result<String, Malformed> {
    match std::str::from_utf8(token) {
        Ok(text) if is_token(token) => Ok(text.to_owned()),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(value: &str) -> Result<Vec<Extension>, Malformed> {
        parse_extensions([&HeaderValue::from_str(value).unwrap()])
    }

    fn extension(name: &str, params: &[(&str, Option<&str>)]) -> Extension {
        let owned =
            |(name, value): &(&str, Option<&str>)| ((*name).to_owned(), value.map(str::to_owned));
        Extension {
            name: name.into(),
            params: params.iter().map(owned).collect(),
        }
    }

    #[test]
    fn extension_lists() {
        let offer =
            "permessage-deflate; client_max_window_bits; server_max_window_bits=\"1\\0\", x";
        let bits = [
            ("client_max_window_bits", None),
            ("server_max_window_bits", Some("10")),
        ];
        let deflate = extension("permessage-deflate", &bits);
        assert_eq!(parsed(offer), Ok(vec![deflate, extension("x", &[])]));
        assert_eq!(parsed(""), Ok(vec![]));
        assert_eq!(parsed(" , ,"), Ok(vec![]));
        let b = extension("a", &[("b", Some("c"))]);
        assert_eq!(parsed("\ta ;\tb = c ,d"), Ok(vec![b, extension("d", &[])]));
        let twice = extension("a", &[("b", None), ("b", Some("1"))]);
        assert_eq!(parsed("a;b;b=1"), Ok(vec![twice]));
    }

    #[test]
    fn malformed_extension_lists() {
        let names = r#"; | a; | a;;b | a b | = | a=b | "a" | a/b | é"#;
        let params = r#"a;b c | a;b= | a;b=,c | a;=b | a;b=c=d | a;"b" | a;b='c,d("#;
        let quoted = r#"a;b=" | a;b="c | a;b="c\ | a;b="" | a;b="c d" | a;b="c"d | a;b="\"""#;
        for value in [names, params, quoted]
            .iter()
            .flat_map(|list| list.split(" | "))
        {
            assert_eq!(parsed(value), Err(Malformed), "{value}");
        }
    }

    /// Names and numbers are not interpreted here (ws had GHSA-5v72-xg48-5rpm).
    #[test]
    fn odd_names_are_just_names() {
        let odd = "constructor; __proto__=hasOwnProperty, toString; server_max_window_bits=99";
        assert_eq!(parsed(odd).unwrap().len(), 2);
        assert_eq!(parsed(odd).unwrap()[0].name, "constructor");
    }

    #[test]
    fn extension_counts_are_bounded() {
        assert!(parsed(&"a,".repeat(MAX_EXTENSIONS)).is_ok());
        assert!(parsed(&"a,".repeat(MAX_EXTENSIONS + 1)).is_err());
        assert!(parsed(&format!("a{}", ";a".repeat(MAX_PARAMS))).is_ok());
        assert!(parsed(&format!("a{}", ";a".repeat(MAX_PARAMS + 1))).is_err());
    }

    proptest! {
        /// Any value parses or is refused; what parses comes back from its canonical form.
        #[test]
        fn extensions_survive_a_round_trip(value in "[a-c ,;=\"\\\\\t]{0,24}") {
            if let Ok(extensions) = parsed(&value) {
                let item = |e: &Extension| {
                    let param = |(name, value): &(String, Option<String>)| match value {
                        Some(value) => format!(";{name}={value}"),
                        None => format!(";{name}"),
                    };
                    e.name.clone() + &e.params.iter().map(param).collect::<String>()
                };
                let canonical: Vec<_> = extensions.iter().map(item).collect();
                prop_assert_eq!(parsed(&canonical.join(",")), Ok(extensions));
            }
        }
    }
}
