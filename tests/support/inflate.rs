//! RFC 1951 read bit by bit, and nothing else: to see how far back compressed data refer, which
//! inflaters that keep the largest window whatever they are told don't say.

/// Inflates messages, each with those before it as context.
pub struct Narrow {
    /// How far back anything may refer.
    window: usize,
    history: Vec<u8>,
}

impl Narrow {
    pub fn new(bits: u8) -> Self {
        Self {
            window: 1 << bits,
            history: Vec::new(),
        }
    }

    /// The message in the payload of a compressed one.
    pub fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let begin = self.history.len();
        let payload = [payload, &[0, 0, 0xFF, 0xFF]].concat();
        let mut bits = Bits {
            bytes: &payload,
            at: 0,
        };
        while bits.left() > 0 {
            let last = bits.take(1)? == 1;
            match bits.take(2)? {
                0 => self.stored(&mut bits)?,
                1 => self.packed(&mut bits, &Code::fixed(), &Code::new(&[5; 30]))?,
                2 => {
                    let (literals, distances) = dynamic(&mut bits)?;
                    self.packed(&mut bits, &literals, &distances)?;
                }
                _ => return Err("a block of no kind".into()),
            }
            if last {
                return Err("a final block, which no server here writes".into());
            }
        }
        let message = self.history[begin..].to_vec();
        let far = self.history.len().saturating_sub(self.window);
        self.history.drain(..far);
        Ok(message)
    }

    fn stored(&mut self, bits: &mut Bits<'_>) -> Result<(), String> {
        bits.at = bits.at.div_ceil(8) * 8;
        let (len, not) = (bits.take(16)?, bits.take(16)?);
        if len ^ not != 0xFFFF {
            return Err("a length that is not what its complement says".into());
        }
        for _ in 0..len {
            self.history.push(bits.take(8)? as u8);
        }
        Ok(())
    }

    fn packed(
        &mut self,
        bits: &mut Bits<'_>,
        literals: &Code,
        distances: &Code,
    ) -> Result<(), String> {
        loop {
            let symbol = literals.next(bits)?;
            if symbol < 256 {
                self.history.push(symbol as u8);
                continue;
            }
            // 3.2.5: codes for lengths and distances, and the bits that follow them.
            let len = match symbol - 256 {
                0 => return Ok(()),
                code @ 1..=8 => code + 2,
                code @ 9..=28 => {
                    let extra = (code - 5) / 4;
                    (1 << (extra + 2)) + 3 + (((code - 5) % 4) << extra) + bits.take(extra)?
                }
                29 => 258,
                code => return Err(format!("the length code {code}")),
            };
            let distance = match distances.next(bits)? {
                code @ 0..=3 => code + 1,
                code @ 4..=29 => {
                    let extra = code / 2 - 1;
                    ((2 + code % 2) << extra) + 1 + bits.take(extra)?
                }
                code => return Err(format!("the distance code {code}")),
            };
            let reach = self.window.min(self.history.len());
            if distance > reach {
                return Err(format!("{distance} bytes back, where {reach} are known"));
            }
            let start = self.history.len() - distance;
            for at in start..start + len {
                self.history.push(self.history[at]);
            }
        }
    }
}

/// 3.2.7: the codes of a dynamic block.
fn dynamic(bits: &mut Bits<'_>) -> Result<(Code, Code), String> {
    const ORDER: [usize; 19] = [
        16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
    ];
    let (literals, distances, count) = (bits.take(5)? + 257, bits.take(5)? + 1, bits.take(4)? + 4);
    let mut of_lengths = [0; 19];
    for place in &ORDER[..count] {
        of_lengths[*place] = bits.take(3)?;
    }
    let of_lengths = Code::new(&of_lengths);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (len, times) = match of_lengths.next(bits)? {
            16 => {
                let last = lengths.last().ok_or("a repetition of nothing")?;
                (*last, 3 + bits.take(2)?)
            }
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            len => (len, 1),
        };
        lengths.resize(lengths.len() + times, len);
    }
    let (literals, distances) = lengths.split_at(literals);
    Ok((Code::new(literals), Code::new(distances)))
}

/// A Huffman code as 3.2.2 has it: by the length of its words.
struct Code {
    /// How many words have each length.
    counts: [usize; 16],
    /// By length, then by value.
    symbols: Vec<usize>,
}

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; 16];
        let mut symbols = Vec::new();
        for (len, count) in counts.iter_mut().enumerate().skip(1) {
            let before = symbols.len();
            symbols.extend((0..lengths.len()).filter(|symbol| lengths[*symbol] == len));
            *count = symbols.len() - before;
        }
        Self { counts, symbols }
    }

    /// 3.2.6
    fn fixed() -> Self {
        let lengths = [(8, 144), (9, 112), (7, 24), (8, 8)];
        let lengths = lengths.map(|(len, times)| vec![len; times]);
        Self::new(&lengths.concat())
    }

    fn next(&self, bits: &mut Bits<'_>) -> Result<usize, String> {
        let (mut word, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            word |= bits.take(1)?;
            if word < first + count {
                return Ok(self.symbols[index + word - first]);
            }
            index += count;
            first = (first + count) << 1;
            word <<= 1;
        }
        Err("a word that is not in the code".into())
    }
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn left(&self) -> usize {
        8 * self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<usize, String> {
        let mut value = 0;
        for n in 0..count {
            let byte = self.bytes.get(self.at / 8).ok_or("cut short")?;
            value |= usize::from(byte >> (self.at % 8) & 1) << n;
            self.at += 1;
        }
        Ok(value)
    }
}
