//! No folder of the library knows one that knows it, over however many others.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::files::TextFile;

/// Where the library's folders stand.
const LIBRARY: &str = "burn-frontier/src/";

/// Whom a folder or file at the library's root names, and where.
type Known<'a> = BTreeMap<&'a str, BTreeMap<&'a str, (&'a str, usize)>>;

/// Reports each circle once, by a place that closes it.
pub fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut known = Known::new();
    for file in files {
        let Some(room) = room(&file.path) else {
            continue;
        };
        let lines = (1..).zip(file.text.lines());
        // Tests stand at the end of a file, and may look at anything.
        let code = lines.take_while(|(_, text)| *text != "#[cfg(test)]");
        for (line, text) in code.filter(|(_, text)| !text.trim_start().starts_with("//")) {
            for (at, word) in text.match_indices("crate::") {
                let rest = &text[at + word.len()..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let other = &rest[..end.unwrap_or(rest.len())];
                // Names of the root itself have capitals, or are macros.
                if other != room
                    && files
                        .iter()
                        .any(|file| self::room(&file.path) == Some(other))
                {
                    let of = known.entry(room).or_default();
                    of.entry(other).or_insert((&file.path, line));
                }
            }
        }
    }
    let mut findings = Vec::new();
    let mut done = BTreeSet::new();
    for room in known.keys() {
        walk(room, &mut Vec::new(), &known, &mut done, &mut findings);
    }
    findings
}

/// The folder, or the file, at the library's root that a source file belongs to.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix(LIBRARY)?.strip_suffix(".rs")?;
    let room = inside.split('/').next()?;
    (!["lib", "prelude"].contains(&room) && !inside.ends_with("/tests")).then_some(room)
}

fn walk<'a>(
    room: &'a str,
    path: &mut Vec<&'a str>,
    known: &Known<'a>,
    done: &mut BTreeSet<&'a str>,
    findings: &mut Vec<Finding>,
) {
    path.push(room);
    for (&other, &(file, line)) in known.get(room).into_iter().flatten() {
        if let Some(start) = path.iter().position(|&before| before == other) {
            let circle = [&path[start..], &[other]].concat().join(" -> ");
            let what =
                format!("closes a circle of folders: {circle}; move what both need below them");
            findings.push(Finding::new(file, line, what));
        } else if !done.contains(other) {
            walk(other, path, known, done, findings);
        }
    }
    path.pop();
    done.insert(room);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile::new(format!("{LIBRARY}{path}"), text)
    }

    #[test]
    fn a_circle_is_reported_where_it_closes() {
        let files = [
            file("a/mod.rs", "use crate::b::B;\n"),
            file("b.rs", "//! As [`crate::a`].\nuse crate::c::C;\n"),
            file("c/deep.rs", "\nuse crate::a::A;\n"),
            file(
                "d.rs",
                "use crate::a::A;\nuse crate::Error;\n#[cfg(test)]\nuse crate::d;\n",
            ),
            file("a/tests.rs", "use crate::d::D;\n"),
            file("lib.rs", "pub use crate::a::A;\n"),
        ];
        let found = check(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].path.as_str(), found[0].line),
            ("burn-frontier/src/c/deep.rs", 2)
        );
        assert!(found[0].what.contains("a -> b -> c -> a"), "{}", found[0]);
        assert!(check(&files[..2]).is_empty());
    }
}
