//! Prices that walk at random. No clock, no sockets: whoever calls says when it is.

use std::collections::VecDeque;

use serde_json::{Value, json};

pub const SECTORS: [&str; 8] = [
    "energy", "foods", "glass", "metals", "paper", "textiles", "tools", "water",
];

/// Prices of before that are kept of each stock, for the chart of those who have just come.
const HISTORY: usize = 32;

pub struct Stock {
    pub symbol: String,
    /// Its place in [`SECTORS`].
    pub sector: usize,
    pub cents: u32,
    pub open: u32,
    /// How often the price was set: tells a client what it has missed.
    pub updates: u32,
    /// When the price was set, in milliseconds of the market's time.
    pub at: u64,
    history: VecDeque<u32>,
}

pub struct Market {
    pub stocks: Vec<Stock>,
    random: u64,
}

impl Market {
    /// At most 10,000 stocks: there are no more symbols.
    pub fn new(stocks: usize, seed: u64) -> Self {
        let mut market = Self {
            stocks: Vec::new(),
            random: seed | 1,
        };
        for nth in 0..stocks {
            let cents = 500 + market.random(50_000);
            market.stocks.push(Stock {
                symbol: symbol(nth),
                sector: nth % SECTORS.len(),
                cents,
                open: cents,
                updates: 0,
                at: 0,
                history: VecDeque::with_capacity(HISTORY),
            });
        }
        market
    }

    /// Sets the price of any one stock anew: which.
    pub fn walk(&mut self, at: u64) -> usize {
        let nth = self.random(self.stocks.len() as u32) as usize;
        // Up to 0.4 % up or down, and at least a cent.
        let most = 1 + self.stocks[nth].cents / 250;
        let up = self.random(2 * most + 1);
        let stock = &mut self.stocks[nth];
        stock.cents = (stock.cents + up).saturating_sub(most).max(100);
        stock.updates += 1;
        stock.at = at;
        nth
    }

    /// Remembers the prices of now.
    pub fn remember(&mut self) {
        for stock in &mut self.stocks {
            if stock.history.len() == HISTORY {
                stock.history.pop_front();
            }
            stock.history.push_back(stock.cents);
        }
    }

    /// Everything of one sector: what a client begins with.
    pub fn snapshot(&self, sector: usize) -> String {
        let stocks = self.stocks.iter().enumerate();
        let stocks = stocks.filter(|(_, stock)| stock.sector == sector);
        let stocks = stocks.map(|(key, stock)| {
            let Stock {
                symbol,
                cents,
                open,
                updates,
                ..
            } = stock;
            json!([key, symbol, cents, updates, open, stock.steps()])
        });
        json!({"sector": SECTORS[sector], "stocks": Value::from_iter(stocks)}).to_string()
    }

    /// xorshift: anything below `bound`.
    fn random(&mut self, bound: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (((self.random >> 32) * u64::from(bound)) >> 32) as u32
    }
}

impl Stock {
    /// `[key, cents, updates, at]`.
    pub fn quote(&self, key: usize) -> String {
        format!("[{key},{},{},{}]", self.cents, self.updates, self.at)
    }

    /// The history, each price as the difference to the next: from now back, and short.
    fn steps(&self) -> Vec<i64> {
        let mut later = i64::from(self.cents);
        let prices = self.history.iter().rev().map(|cents| i64::from(*cents));
        prices
            .map(|cents| {
                let step = cents - later;
                later = cents;
                step
            })
            .collect()
    }
}

/// Four letters that can be spoken, different for each.
fn symbol(nth: usize) -> String {
    const CONSONANTS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
    const VOWELS: &[u8; 5] = b"AEIOU";
    // 7919 has no factor in common with 10,000.
    let n = nth * 7919 % 10_000;
    let letters = [
        CONSONANTS[n % 20],
        VOWELS[n / 20 % 5],
        CONSONANTS[n / 100 % 20],
        VOWELS[n / 2000],
    ];
    letters.map(char::from).iter().collect()
}
