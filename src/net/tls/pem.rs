//! PEM (RFC 7468) as people have it, made into the PEM that native-tls takes.

type Result<T> = std::result::Result<T, String>;

const TO_PKCS8: &str = "openssl pkcs8 -topk8 -nodes -in KEY -out NEW_KEY";

/// The chain as it is, if there is a certificate in it.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<u8>> {
    if block(pem, "CERTIFICATE").is_none() {
        return Err("no certificate in it (-----BEGIN CERTIFICATE-----)".into());
    }
    Ok(pem.to_vec())
}

/// Each certificate by itself.
pub(super) fn each_certificate(mut pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let found = block(pem, "CERTIFICATE")?;
        let end = found.as_ptr() as usize - pem.as_ptr() as usize + found.len();
        pem = &pem[end..];
        Some(found)
    })
}

/// The private key in PKCS#8.
pub(super) fn private_key(pem: &[u8]) -> Result<Vec<u8>> {
    if let Some(key) = block(pem, "PRIVATE KEY") {
        return Ok(key.to_vec());
    }
    if block(pem, "ENCRYPTED PRIVATE KEY").is_some() {
        return Err(format!("the key is encrypted; decrypt it with: {TO_PKCS8}"));
    }
    for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY"] {
        if block(pem, label).is_some() {
            return Err(format!(
                "the key is not in PKCS#8; convert it with: {TO_PKCS8}"
            ));
        }
    }
    Err("no private key in it (-----BEGIN PRIVATE KEY-----)".into())
}

/// The first block with this label, with its borders.
fn block<'a>(pem: &'a [u8], label: &str) -> Option<&'a [u8]> {
    let begin = find(pem, &format!("-----BEGIN {label}-----"))?;
    let rest = &pem[begin..];
    let border = format!("-----END {label}-----");
    let end = find(rest, &border)? + border.len();
    Some(&rest[..end])
}

fn find(text: &[u8], what: &str) -> Option<usize> {
    text.windows(what.len())
        .position(|window| window == what.as_bytes())
}
