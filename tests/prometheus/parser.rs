//! Prometheus' text format, read strictly: what a scraper forgives is refused here.

use std::collections::{BTreeMap, HashSet};

/// A page, by series: the name with its labels in order, as `name{a="b"}`.
#[derive(Debug, Default)]
pub struct Page {
    pub values: BTreeMap<String, f64>,
    /// Names of families with their kinds.
    pub families: BTreeMap<String, String>,
}

impl Page {
    /// Panics at the first line that is not as the format says.
    pub fn read(text: &str) -> Page {
        let mut page = Page::default();
        let mut helped = HashSet::new();
        let mut family = String::new();
        assert!(text.ends_with('\n'), "the last line lacks its end");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect(line);
                assert!(is_name(name) && !help.is_empty(), "{line}");
                assert!(helped.insert(name.to_owned()), "a second HELP: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                assert!(helped.contains(name), "no HELP before {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                let known = page.families.insert(name.to_owned(), kind.to_owned());
                assert!(known.is_none(), "a second TYPE, or a family in two pieces: {line}");
                family = name.to_owned();
            } else {
                page.sample(line, &family);
            }
        }
        page.check_histograms();
        page
    }

    fn sample(&mut self, line: &str, family: &str) {
        let name_end = line.find(['{', ' ']).expect(line);
        let (name, rest) = line.split_at(name_end);
        let kind = &self.families[family];
        let ending = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} stands among {family}"));
        match kind.as_str() {
            "histogram" => assert!(matches!(ending, "_bucket" | "_sum" | "_count"), "{line}"),
            _ => assert_eq!(ending, "", "{line}"),
        }
        let (labels, value) = match rest.strip_prefix('{') {
            None => (Vec::new(), rest),
            Some(rest) => labels(rest, line),
        };
        let names: HashSet<&String> = labels.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), labels.len(), "a label twice: {line}");
        let value = value.strip_prefix(' ').expect(line);
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let known = self.values.insert(series(name, &labels), value);
        assert!(known.is_none(), "a series twice: {line}");
    }

    /// Each bucket has at least what the one before has, and the last has all.
    fn check_histograms(&self) {
        let histograms = self.families.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name);
        for name in histograms {
            let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (series, value) in
                self.values.iter().filter(|(series, _)| series.starts_with(&format!("{name}_bucket{{")))
            {
                let (before, rest) = series.split_once("le=\"").expect(series);
                let (end, after) = rest.split_once('"').expect(series);
                let end = if end == "+Inf" { f64::INFINITY } else { end.parse().expect(series) };
                let others = format!("{before}{}", after.trim_start_matches(','));
                buckets
                    .entry(others.trim_end_matches(['}', ',']).replace("_bucket{", "{"))
                    .or_default()
                    .push((end, *value));
            }
            for (others, mut buckets) in buckets {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{others}: {buckets:?}");
                let last = buckets.last().expect("grouped above");
                let count = self.values[&format!("{}}}", others.replacen('{', "_count{", 1))];
                assert_eq!(*last, (f64::INFINITY, count), "{others}");
            }
        }
    }

    /// All values of a name whose labels are among these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        let labelled = |series: &str| {
            labels.iter().all(|(label, value)| {
                let wanted = format!("{label}=\"{value}\"");
                series.contains(&format!("{{{wanted}")) || series.contains(&format!(",{wanted}"))
            })
        };
        self.values.iter().filter(|(series, _)| of_name(series) && labelled(series)).map(|(_, value)| value).sum()
    }
}

fn series(name: &str, labels: &[(String, String)]) -> String {
    let mut labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    labels.sort();
    format!("{name}{{{}}}", labels.join(","))
}

/// The labels, and what is behind their brace.
fn labels<'a>(mut rest: &'a str, line: &str) -> (Vec<(String, String)>, &'a str) {
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect(line);
        assert!(is_name(name) && !name.contains(':'), "{line}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            let (at, c) = chars.next().expect(line);
            match c {
                '"' => break at,
                '\\' => match chars.next().expect(line).1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    _ => panic!("an escape that there is not: {line}"),
                },
                c => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        match rest.split_at(1) {
            (",", after) => rest = after,
            ("}", after) => return (labels, after),
            _ => panic!("{line}"),
        }
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.chars().all(allowed) && name.starts_with(|c: char| !c.is_ascii_digit())
}
