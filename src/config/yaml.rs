//! Between serde_yaml and the structs of [`super::file`].
//!
//! serde_yaml tells what is wrong only as text. So the text becomes a [`Node`] first, and the structs are read from
//! that by a deserializer whose error is a [`Fault`]: a path and a [`Problem`]. The line is found last, and only for
//! what goes wrong, by walking down the text again ([`line_of`]).

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use zeroize::Zeroize;

use super::problem::{KeyPath, Problem, Segment};

/// What was written, without its layout.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key may be there twice until [`Map::new`] has looked.
    Map(Vec<(String, Node)>),
}

/// What was written may be a secret.
impl Drop for Node {
    fn drop(&mut self) {
        if let Node::Text(text) = self {
            text.zeroize();
        }
    }
}

/// Not YAML: the line, if the parser knows it, and the parser's reason.
pub(super) struct SyntaxError {
    pub line: Option<usize>,
    pub reason: String,
}

pub(super) fn read(text: &str) -> Result<Node, SyntaxError> {
    serde_yaml::from_str(text).map_err(|error| SyntaxError {
        line: error.location().map(|location| location.line()),
        reason: error.to_string(),
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    /// What serde_yaml finds in a file of comments only; for us that is a configuration that says nothing.
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Signed(value))
    }

    // Nothing here is so large: as a float it is refused wherever a whole number is wanted.
    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Float(value as f64))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Float(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// What is wrong, and where; the path grows outwards while the error goes up.
#[derive(Debug)]
pub(super) struct Fault {
    pub path: KeyPath,
    pub problem: Problem,
}

impl Fault {
    fn here(problem: Problem) -> Fault {
        Fault { path: KeyPath::default(), problem }
    }

    fn within(mut self, segment: Segment) -> Fault {
        self.path.0.insert(0, segment);
        self
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.path, self.problem)
    }
}

impl de::Error for Fault {
    /// serde calls this for what has no method of its own below; none of our types do.
    fn custom<T: fmt::Display>(message: T) -> Fault {
        Fault::here(Problem::Syntax(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, allowed: &dyn de::Expected) -> Fault {
        Fault::invalid_value(found, allowed)
    }

    fn invalid_value(found: de::Unexpected<'_>, allowed: &dyn de::Expected) -> Fault {
        Fault::here(Problem::value(plain_found(found), plain_allowed(&allowed.to_string())))
    }

    fn unknown_field(key: &str, allowed: &'static [&'static str]) -> Fault {
        Fault::here(Problem::UnknownKey { allowed }).within(Segment::Key(key.to_owned()))
    }

    fn missing_field(key: &'static str) -> Fault {
        Fault::here(Problem::MissingKey(key))
    }
}

/// serde's words for what it found, in ours.
fn plain_found(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(value) => value.to_string(),
        de::Unexpected::Signed(value) => value.to_string(),
        de::Unexpected::Float(value) => value.to_string(),
        de::Unexpected::Str(value) => format!("{value:?}"),
        de::Unexpected::Unit => "nothing".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// serde's names for its own types, in the words of YAML.
fn plain_allowed(allowed: &str) -> String {
    match allowed {
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        other => other.to_owned(),
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Unsigned(value) => visitor.visit_u64(*value),
            Node::Signed(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Text(value) => visitor.visit_str(value),
            Node::List(nodes) => visitor.visit_seq(List { nodes: nodes.iter(), index: 0 }),
            Node::Map(entries) => visitor.visit_map(Map::new(entries)?),
        }
    }

    /// A key with nothing after it is as good as no key.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// A section with nothing in it is an empty section.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Node::Null => visitor.visit_map(Map::new(&[])?),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct List<'a> {
    nodes: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(node).map(Some).map_err(|fault| fault.within(Segment::Index(index)))
    }
}

struct Map<'a> {
    entries: std::slice::Iter<'a, (String, Node)>,
    /// Between a key and its value.
    current: Option<&'a (String, Node)>,
}

impl<'a> Map<'a> {
    fn new(entries: &'a [(String, Node)]) -> Result<Map<'a>, Fault> {
        let mut seen = HashSet::new();
        match entries.iter().find(|(key, _)| !seen.insert(key)) {
            Some((key, _)) => Err(Fault::here(Problem::DuplicateKey).within(Segment::Key(key.clone()))),
            None => Ok(Map { entries: entries.iter(), current: None }),
        }
    }
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.current.take().expect("serde asks for a value after its key");
        seed.deserialize(node).map_err(|fault| fault.within(Segment::Key(key.clone())))
    }
}

/// The line of a key or list element; the second time it is there, with `nth` 1.
pub(super) fn line_of(text: &str, path: &KeyPath, nth: usize) -> Option<usize> {
    let walk = Locate { path: &path.0, nth };
    let arrived = walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    arrived.location().map(|location| location.line())
}

/// Walks down the text and fails where the path ends, because serde_yaml says where it stands only in an error.
struct Locate<'a> {
    path: &'a [Segment],
    nth: usize,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    /// What does not fit the path is as far as one can go: the visitor's own refusal carries that line.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }

    /// An empty file.
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.path.split_first() else {
            return Err(de::Error::custom("arrived"));
        };
        for _ in 0..*wanted {
            list.next_element::<de::IgnoredAny>()?;
        }
        list.next_element_seed(Locate { path: rest, nth: self.nth })?;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.path.split_first() else {
            return Err(de::Error::custom("arrived"));
        };
        loop {
            let stop = if rest.is_empty() && self.nth == 0 { Some(wanted.as_str()) } else { None };
            let Some(key) = map.next_key_seed(StopAt(stop))? else { return Ok(()) };
            if key != *wanted {
                map.next_value::<de::IgnoredAny>()?;
            } else if rest.is_empty() {
                self.nth -= 1;
                map.next_value::<de::IgnoredAny>()?;
            } else {
                return map.next_value_seed(Locate { path: rest, nth: self.nth });
            }
        }
    }
}

/// Reads a key, and fails at this one.
struct StopAt<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for StopAt<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for StopAt<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        if self.0 == Some(key) {
            return Err(E::custom("arrived"));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
a: 1

b:
  c: [10,
      20]
  d: {e: 5, f:
      {g: 6}}
list:
  - x: 1
    y: 2
  -
    z: 3
twice: {k: 1,
  k: 2}
";

    #[test]
    fn lines() {
        let check = |keys: &[&str], nth, expected| {
            let segment = |key: &&str| match key.parse() {
                Ok(index) => Segment::Index(index),
                Err(_) => Segment::Key(key.to_string()),
            };
            let path = KeyPath(keys.iter().map(segment).collect());
            assert_eq!(line_of(TEXT, &path, nth), Some(expected), "{path}");
        };
        check(&["a"], 0, 2);
        check(&["b"], 0, 4);
        check(&["b", "c"], 0, 5);
        check(&["b", "c", "1"], 0, 6);
        check(&["b", "d", "e"], 0, 7);
        check(&["b", "d", "f", "g"], 0, 8);
        check(&["list", "0", "y"], 0, 11);
        check(&["list", "1", "z"], 0, 13);
        check(&["list", "0"], 0, 10);
        check(&["twice", "k"], 0, 14);
        check(&["twice", "k"], 1, 15);
    }

    #[test]
    fn a_path_that_is_not_there_has_no_line() {
        assert_eq!(line_of(TEXT, &KeyPath::of(["nowhere"]), 0), None);
        assert_eq!(line_of("", &KeyPath::of(["nowhere"]), 0), None);
    }

    #[test]
    fn nothing_written_is_null() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert!(matches!(read(text), Ok(Node::Null)), "{text:?}");
        }
    }
}
