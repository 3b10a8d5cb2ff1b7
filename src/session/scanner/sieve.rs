//! A text that is too long to be here at once, looked at piece by piece as it passes: by words, as the body of a DO.

use super::body::look_inside_until;
use super::{Effects, Scanner};

/// What is said within so many bytes is found wherever a piece ends.
const OVERLAP: usize = 512;

/// What has been kept of the last piece.
#[derive(Default)]
pub struct Sieve {
    kept: Vec<u8>,
}

impl Scanner {
    /// Reads on; what may change by the next piece of the text, and the names of settings, which are the scanner's last.
    pub fn sift(&mut self, sieve: &mut Sieve, piece: &[u8], last: bool) -> Effects {
        self.names.clear();
        let text = &mut sieve.kept;
        text.extend_from_slice(piece);
        let end = if last { text.len() } else { text.len().saturating_sub(OVERLAP) };
        let effects = look_inside_until(text, end, &mut self.names);
        text.drain(..end);
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is found in a text that comes in pieces of this size.
    fn sift(text: &[u8], size: usize) -> (Effects, Vec<Vec<u8>>) {
        let (mut scanner, mut sieve) = (Scanner::default(), Sieve::default());
        let (mut effects, mut names) = (Effects::NONE, Vec::new());
        let count = text.chunks(size).count();
        for (at, piece) in text.chunks(size).enumerate() {
            effects = effects.and(scanner.sift(&mut sieve, piece, at + 1 == count));
            names.extend(scanner.names().map(<[u8]>::to_vec));
        }
        names.sort();
        names.dedup();
        (effects, names)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_between_pieces(before in 0usize..3000, size in 1usize..2000, behind in 0usize..1500) {
            let text = format!("{}; set my.own = 1; {}", "values (1), ".repeat(before), "more ".repeat(behind));
            let (effects, names) = sift(text.as_bytes(), size);
            prop_assert!(effects.has(Effects::SETTINGS));
            prop_assert_eq!(names, [b"my.own".to_vec()]);
        }
    }

    #[test]
    fn long_texts_that_only_bring_data_change_nothing() {
        let text = format!("insert into t values {}(0, 'x')", "(1, 'the data set of a.b'), ".repeat(20_000));
        assert_eq!(sift(text.as_bytes(), 65536), (Effects::SEQUENCE, Vec::new()));
        let text = format!("insert into t values {}(0, 'x')", "('prepare to load a reset.'), ".repeat(20_000));
        let harmless = Effects::SEQUENCE.and(Effects::RESETS).and(Effects::ANY_SETTING);
        assert_eq!(sift(text.as_bytes(), 65536), (harmless, Vec::new()));
        let text = format!("update t set a = 1 where b in ({}0)", "1, ".repeat(50_000));
        assert_eq!(sift(text.as_bytes(), 65536), (Effects::NONE, Vec::new()));
        let text = format!("{} select setseed(1)", " ".repeat(100_000));
        assert_eq!(sift(text.as_bytes(), 65536).0, Effects::LASTING);
    }
}
