//! What is set for topics by their names.

/// Values for patterns, each of which is a name, or the beginning of some and a `*`.
#[derive(Clone, Debug)]
pub(crate) struct Patterns<T>(Vec<(Box<str>, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Patterns<T> {
    pub(crate) fn add(&mut self, pattern: &str, value: T) {
        self.0.push((pattern.into(), value));
    }

    /// Of the first that matches.
    pub(crate) fn of(&self, topic: &str) -> Option<&T> {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => topic.starts_with(start),
            None => topic == pattern,
        };
        let found = self.0.iter().find(|(pattern, _)| matches(pattern));
        found.map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_matches_counts() {
        let mut topics = Patterns::default();
        assert_eq!(topics.of("a"), None);
        topics.add("images/small", 1);
        topics.add("images/*", 2);
        topics.add("*", 3);
        assert_eq!(topics.of("images/small"), Some(&1));
        assert_eq!(topics.of("images/smaller"), Some(&2));
        assert_eq!(topics.of("images"), Some(&3));
    }
}
