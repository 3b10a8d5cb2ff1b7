//! Rows of the console: columns with PostgreSQL's types, values of these, and both as messages, in text or in binary.

use crate::protocol::Writer;

/// The types of the columns, as PgBouncer has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
}

/// A column: its name and its type.
pub type Column = (&'static str, Kind);

/// A value of a row; what it is on the wire, its column says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Null,
    Text(String),
    Number(i64),
}

/// A result.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Value {
        Value::Number(yes.into())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl Kind {
    /// PostgreSQL's type id, and the size of its values.
    fn wire(self) -> (u32, i16) {
        match self {
            Kind::Text => (25, -1),
            Kind::Int4 => (23, 4),
            Kind::Int8 => (20, 8),
            Kind::Numeric => (1700, -1),
        }
    }
}

impl Value {
    /// As a value of `kind`. A number that the type has no room for is its largest.
    fn encode(&self, kind: Kind, binary: bool) -> Option<Vec<u8>> {
        let number = match (self, kind) {
            (Value::Null, _) => return None,
            (Value::Text(text), _) => return Some(text.clone().into_bytes()),
            (Value::Number(number), Kind::Int4) => (*number).clamp(i32::MIN.into(), i32::MAX.into()),
            (Value::Number(number), _) => *number,
        };
        Some(match kind {
            _ if !binary => number.to_string().into_bytes(),
            Kind::Text => number.to_string().into_bytes(),
            Kind::Int4 => (number as i32).to_be_bytes().to_vec(),
            Kind::Int8 => number.to_be_bytes().to_vec(),
            Kind::Numeric => numeric(number),
        })
    }
}

/// PostgreSQL's binary numeric: digits to the base of 10,000, the first weighing 10,000^weight.
fn numeric(number: i64) -> Vec<u8> {
    const NEGATIVE: u16 = 0x4000;
    let mut digits = Vec::new();
    let mut rest = number.unsigned_abs();
    while rest > 0 {
        digits.push((rest % 10_000) as u16);
        rest /= 10_000;
    }
    digits.reverse();
    let sign = if number < 0 { NEGATIVE } else { 0 };
    let head = [digits.len() as u16, (digits.len() as u16).saturating_sub(1), sign, 0];
    head.into_iter().chain(digits).flat_map(u16::to_be_bytes).collect()
}

/// Which of a result's columns go in binary: none, all, or each as said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Formats(pub Vec<bool>);

impl Formats {
    fn of(&self, column: usize) -> bool {
        match self.0.as_slice() {
            [] => false,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(false),
        }
    }
}

/// Appends a message that needs at most `room` bytes.
pub fn put(out: &mut Vec<u8>, room: usize, write: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.resize(start + room, 0);
    let mut writer = Writer::new(&mut out[start..]);
    write(&mut writer);
    let written = writer.written_size();
    out.truncate(start + written);
}

/// Room for a message's head and a count.
const HEAD: usize = 16;

/// Appends the columns.
pub fn put_columns(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    let room = HEAD + columns.iter().map(|(name, _)| name.len() + 19).sum::<usize>();
    put(out, room, |writer| {
        let of = |(at, &(name, kind)): (usize, &Column)| {
            let (oid, size) = kind.wire();
            (name.as_bytes(), oid, size, formats.of(at))
        };
        let columns: Vec<_> = columns.iter().enumerate().map(of).collect();
        writer.typed_row_description(&columns).expect("the room was asked for");
    });
}

/// Appends a row.
pub fn put_row(out: &mut Vec<u8>, columns: &[Column], row: &[Value], formats: &Formats) {
    let encode = |(at, value): (usize, &Value)| {
        let kind = columns.get(at).map_or(Kind::Text, |column| column.1);
        value.encode(kind, formats.of(at))
    };
    let values: Vec<Option<Vec<u8>>> = row.iter().enumerate().map(encode).collect();
    let room = HEAD + values.iter().map(|value| 4 + value.as_ref().map_or(0, Vec::len)).sum::<usize>();
    put(out, room, |writer| {
        let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
        writer.data_row(&values).expect("the room was asked for");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_both_forms() {
        let check = |value: Value, kind, text: Option<&[u8]>, binary: Option<&[u8]>| {
            assert_eq!(value.encode(kind, false).as_deref(), text);
            assert_eq!(value.encode(kind, true).as_deref(), binary);
        };
        check(Value::Null, Kind::Int4, None, None);
        check("a".into(), Kind::Text, Some(b"a"), Some(b"a"));
        check(7u64.into(), Kind::Int4, Some(b"7"), Some(&[0, 0, 0, 7]));
        check((1u64 << 40).into(), Kind::Int4, Some(b"2147483647"), Some(&[0x7f, 0xff, 0xff, 0xff]));
        check(7u64.into(), Kind::Int8, Some(b"7"), Some(&[0, 0, 0, 0, 0, 0, 0, 7]));
        check(0u64.into(), Kind::Numeric, Some(b"0"), Some(&[0, 0, 0, 0, 0, 0, 0, 0]));
        // 120,003,004: 1 * 10000^2 + 2000 * 10000 + 3004.
        check(
            120_003_004u64.into(),
            Kind::Numeric,
            Some(b"120003004"),
            Some(&[0, 3, 0, 2, 0, 0, 0, 0, 0, 1, 0x07, 0xd0, 0x0b, 0xbc]),
        );
        check(Value::Number(-1), Kind::Numeric, Some(b"-1"), Some(&[0, 1, 0, 0, 0x40, 0, 0, 0, 0, 1]));
    }
}
