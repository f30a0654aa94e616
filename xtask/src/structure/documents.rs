//! Documents: links and paths that lead somewhere, and a README that stays short.

use std::collections::BTreeSet;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::Finding;
use super::files::TextFile;

/// The page that people see first, and the lines that it may have.
const README: (&str, usize) = ("README.md", 150);
/// What has been: it may name files that are gone.
const HISTORY: &str = "CHANGELOG.md";

/// Checks every Markdown file among `files`: its relative links and their anchors, and the paths that it names as code.
pub fn check(files: &[TextFile]) -> Vec<Finding> {
    let documents: Vec<_> = files
        .iter()
        .filter(|file| file.path.ends_with(".md"))
        .map(|file| (file, Document::read(&file.text)))
        .collect();
    let mut findings = Vec::new();
    for (file, document) in &documents {
        findings.extend(too_long(file));
        for (line, link) in &document.links {
            let broken = broken_link(&file.path, link, files, &documents);
            findings.extend(broken.map(|what| Finding::new(&file.path, *line, what)));
        }
        if file.path != HISTORY {
            findings.extend(lost_paths(file, document, files));
        }
    }
    findings
}

/// What is looked at of a Markdown file.
#[derive(Default)]
struct Document {
    /// Links and pictures, each with its line, counted from 1.
    links: Vec<(usize, String)>,
    /// Spans of code outside of blocks, each with its line.
    code: Vec<(usize, String)>,
    /// The anchors of its headings, as GitHub makes them.
    anchors: BTreeSet<String>,
}

impl Document {
    fn read(text: &str) -> Self {
        let mut document = Self::default();
        let mut heading: Option<String> = None;
        for (event, at) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = 1 + text[..at.start].matches('\n').count();
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line, dest_url.into_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.add_anchor(&heading.take().unwrap_or_default());
                }
                Event::Text(text) => heading.iter_mut().for_each(|all| all.push_str(&text)),
                Event::Code(code) => {
                    heading.iter_mut().for_each(|all| all.push_str(&code));
                    document.code.push((line, code.into_string()));
                }
                _ => {}
            }
        }
        document
    }

    /// Lower case, blanks as hyphens, no punctuation; the second of its kind ends with `-1`.
    fn add_anchor(&mut self, heading: &str) {
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let anchor: String = heading.chars().filter(kept).collect();
        let anchor = anchor.to_lowercase().replace(' ', "-");
        let mut count = 0;
        let mut unique = anchor.clone();
        while !self.anchors.insert(unique) {
            count += 1;
            unique = format!("{anchor}-{count}");
        }
    }
}

fn too_long(file: &TextFile) -> Option<Finding> {
    let (path, most) = README;
    let lines = file.text.lines().count();
    (file.path == path && lines > most).then(|| {
        let what =
            format!("{lines} lines, at most {most}; what is for few readers belongs to docs/");
        Finding::new(path, most + 1, what)
    })
}

/// What is wrong with a link of the document at `from`.
fn broken_link(
    from: &str,
    link: &str,
    files: &[TextFile],
    documents: &[(&TextFile, Document)],
) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => from.to_owned(),
        _ => match beside(from, path) {
            Some(target) if exists(&target, files) => target,
            _ => return Some(format!("the link `{link}` leads to no file or folder here")),
        },
    };
    let (_, document) = documents.iter().find(|(file, _)| file.path == target)?;
    (!anchor.is_empty() && !document.anchors.contains(anchor))
        .then(|| format!("the link `{link}` leads to no heading of {target}"))
}

/// The path of `relative` as seen from the file `from`; `None` outside of the workspace.
fn beside(from: &str, relative: &str) -> Option<String> {
    let mut names: Vec<&str> = from.split('/').collect();
    names.pop();
    for name in relative.trim_end_matches('/').split('/') {
        match name {
            "." => {}
            ".." => {
                names.pop()?;
            }
            _ => names.push(name),
        }
    }
    Some(names.join("/"))
}

/// Whether `path` is one of `files`, or a folder that holds one.
fn exists(path: &str, files: &[TextFile]) -> bool {
    files.iter().any(|file| {
        let rest = file.path.strip_prefix(path);
        rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    })
}

/// Code that reads as a path from a folder at the root, and leads nowhere.
fn lost_paths(file: &TextFile, document: &Document, files: &[TextFile]) -> Vec<Finding> {
    let is_path = |code: &str| {
        let plain = |c: char| c.is_alphanumeric() || "/-_.".contains(c);
        let folder = code.split_once('/').map(|(folder, _)| format!("{folder}/"));
        code.chars().all(plain)
            && folder.is_some_and(|folder| files.iter().any(|file| file.path.starts_with(&folder)))
    };
    document
        .code
        .iter()
        .filter(|(_, code)| is_path(code) && !exists(code.trim_end_matches('/'), files))
        .map(|(line, code)| {
            let what = format!("there is no `{code}`; name what there is");
            Finding::new(&file.path, *line, what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is reported of `text` in docs/a.md, beside docs/b.md with two headings of one name and a test.
    fn findings(text: &str) -> Vec<(usize, String)> {
        let files = [
            TextFile::new("docs/a.md", text),
            TextFile::new(
                "docs/b.md",
                "# What `it` does, again\n\n## Same\n\n## Same\n",
            ),
            TextFile::new("tests/parity.rs", ""),
        ];
        let found = check(&files).into_iter();
        found.map(|finding| (finding.line, finding.what)).collect()
    }

    fn only(text: &str, part: &str) {
        let found = findings(text);
        assert!(found.len() == 1 && found[0].1.contains(part), "{found:?}");
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let text = "# Top\n[b](b.md) [it](b.md#what-it-does-again) [second](b.md#same-1) [here](#top)\n\
                    ![test](../tests/parity.rs) [folder](../tests/) [far](https://example.org/none)";
        assert_eq!(findings(text), []);
        assert_eq!(findings("```sh\n[no](link)\n```"), []);
    }

    #[test]
    fn links_that_lead_nowhere_are_reported() {
        only("[b](c.md)", "`c.md` leads to no file");
        only("![b](../../b.md)", "no file");
        only("[b](b.md#same-2)", "no heading of docs/b.md");
        only("[here](#top)", "no heading of docs/a.md");
        only("[reference]\n\n[reference]: ../b.md", "no file");
        only("| a |\n|---|\n| [b](par) |", "no file");
    }

    #[test]
    fn paths_that_a_document_names_exist() {
        assert_eq!(
            findings("`tests/parity.rs` `tests/` `runs/x` `tests/<name>.rs`"),
            []
        );
        only(
            "fine\n\n`tests/equality.rs`",
            "there is no `tests/equality.rs`",
        );
        assert_eq!(findings("fine\n\n`tests/x`")[0].0, 3);
    }

    #[test]
    fn what_has_been_may_name_what_is_gone() {
        let found = |path: &str| {
            let document = TextFile::new(path, "`tests/gone.rs`");
            check(&[document, TextFile::new("tests/parity.rs", "")])
        };
        assert_eq!(found(HISTORY), []);
        assert_eq!(found("README.md").len(), 1);
    }

    #[test]
    fn a_long_readme_is_reported() {
        let of = |path: &str, lines: usize| check(&[TextFile::new(path, "x\n".repeat(lines))]);
        assert_eq!(of("README.md", 150), []);
        assert_eq!(of("docs/a.md", 151), []);
        assert_eq!(of("README.md", 151)[0].line, 151);
    }
}
