//! Aligned columns for a terminal: text to the left, numbers to the right, and never a control character, because
//! names in the cells were chosen by clients.

use std::fmt::Write;

pub struct Column<T> {
    pub title: &'static str,
    pub align: Align,
    pub cell: fn(&T) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Characters of a cell. What is cut away is whole in the JSON.
const CELL_WIDTH_MAX: usize = 40;

pub fn left<T>(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { title, align: Align::Left, cell }
}

pub fn right<T>(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { title, align: Align::Right, cell }
}

/// A line of titles, then one line for each row. No line ends in spaces.
pub fn render<T>(columns: &[Column<T>], rows: &[T]) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| printable((column.cell)(row))).collect()).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|index| {
            let widest = cells.iter().map(|row| row[index].chars().count()).max();
            widest.unwrap_or(0).max(columns[index].title.len())
        })
        .collect();

    let mut text = String::new();
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_string()).collect();
    for line in std::iter::once(&titles).chain(&cells) {
        let start = text.len();
        for ((column, cell), width) in columns.iter().zip(line).zip(&widths) {
            let gap = if text.len() == start { "" } else { "  " };
            match column.align {
                Align::Left => write!(text, "{gap}{cell:<width$}"),
                Align::Right => write!(text, "{gap}{cell:>width$}"),
            }
            .expect("a string takes all that is written");
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

/// `1h02m` rather than `3725`: two units say enough, and take six characters at most for what is below a century.
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// As [`span`], for waits, which are mostly shorter than a second.
pub fn short_span(milliseconds: u64) -> String {
    match milliseconds {
        0 => "0".to_string(),
        1..1000 => format!("{milliseconds}ms"),
        1000..60_000 => format!("{}.{}s", milliseconds / 1000, milliseconds / 100 % 10),
        _ => span(milliseconds / 1000),
    }
}

/// `1,024`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.5 MB`, in powers of 1,024 as in the configuration.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit);
    match unit {
        None => format!("{bytes} B"),
        // Precise to far below the one decimal that is shown.
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
    }
}

/// The text with control characters spelled out and cut to its greatest width.
pub fn printable(text: String) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    match shown.char_indices().nth(CELL_WIDTH_MAX) {
        None => shown,
        Some(_) => shown.chars().take(CELL_WIDTH_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let columns = [
            left("name", |row: &(&str, u64)| row.0.to_string()),
            right("n", |row| row.1.to_string()),
            left("note", |_| String::new()),
        ];
        assert_eq!(render(&columns, &[("a", 1), ("größer", 1000)]), "name       n  note\na          1\ngrößer  1000\n");
        assert_eq!(render(&columns, &[]), "name  n  note\n");
    }

    #[test]
    fn a_client_cannot_draw_on_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n".to_string()), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("x".repeat(CELL_WIDTH_MAX)), "x".repeat(CELL_WIDTH_MAX));
        assert_eq!(printable("x".repeat(CELL_WIDTH_MAX + 1)), "x".repeat(CELL_WIDTH_MAX - 1) + "…");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 59, 60, 3725, 90000].map(span), ["0s", "59s", "1m00s", "1h02m", "1d01h"]);
        assert_eq!([0, 999, 1000, 59999, 60000].map(short_span), ["0", "999ms", "1.0s", "59.9s", "1m00s"]);
        assert_eq!([0, 999, 1000, 209_664_000].map(grouped), ["0", "999", "1,000", "209,664,000"]);
        assert_eq!([1023, 1024, 1536 << 10, 3 << 30].map(size), ["1023 B", "1.0 KB", "1.5 MB", "3.0 GB"]);
    }
}
