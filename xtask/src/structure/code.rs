//! A Rust file without its comments and literals.

use std::iter::Peekable;
use std::str::Chars;

/// `source` without comments, strings and character literals; line numbers stay as they are.
pub fn only_code(source: &str) -> String {
    let mut rest = source.chars().peekable();
    let mut code = String::with_capacity(source.len());
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('/', Some('/')) => while rest.next_if(|&c| c != '\n').is_some() {},
            ('/', Some('*')) => block_comment(&mut rest, &mut code),
            ('"', _) => string(&mut rest, &mut code),
            ('\'', _) => quote(&mut rest, &mut code),
            ('r', Some('"' | '#')) if starts_literal(&code) => raw(&mut rest, &mut code),
            _ => code.push(c),
        }
    }
    code
}

/// What is left out leaves its line ends, and a blank between its neighbours.
fn leave_out(c: char, code: &mut String) {
    if c == '\n' || !code.ends_with([' ', '\n']) {
        code.push(if c == '\n' { '\n' } else { ' ' });
    }
}

fn block_comment(rest: &mut Peekable<Chars>, code: &mut String) {
    rest.next();
    let mut depth = 1;
    while depth > 0 {
        match (rest.next(), rest.peek()) {
            (Some('/'), Some('*')) => {
                rest.next();
                depth += 1;
            }
            (Some('*'), Some('/')) => {
                rest.next();
                depth -= 1;
            }
            (Some(c), _) => leave_out(c, code),
            (None, _) => return,
        }
    }
}

fn string(rest: &mut Peekable<Chars>, code: &mut String) {
    while let Some(mut c) = rest.next() {
        match c {
            '"' => return,
            '\\' => c = rest.next().unwrap_or(c),
            _ => {}
        }
        leave_out(c, code);
    }
}

/// What follows a `'`: a character literal, or the name of a lifetime or label, which stays.
fn quote(rest: &mut Peekable<Chars>, code: &mut String) {
    let mut ahead = rest.clone();
    let first = ahead.next();
    if first == Some('\\') {
        rest.nth(1);
        while rest.next().is_some_and(|c| c != '\'') {}
    } else if ahead.next() == Some('\'') {
        rest.nth(1);
    } else {
        code.push('\'');
    }
}

/// Whether an `r` after `code` is a prefix (`r`, `br`, `cr`) and not the end of a name.
fn starts_literal(code: &str) -> bool {
    let name = |c: char| c.is_alphanumeric() || c == '_';
    let word = code.rsplit(|c| !name(c)).next().unwrap_or_default();
    matches!(word, "" | "b" | "c")
}

/// What follows the `r` of a raw string, or of a raw name such as `r#type`, which stays.
fn raw(rest: &mut Peekable<Chars>, code: &mut String) {
    let mut hashes = 0;
    while rest.next_if_eq(&'#').is_some() {
        hashes += 1;
    }
    if rest.next_if_eq(&'"').is_none() {
        code.push_str("r#");
        return;
    }
    let mut closing: Option<usize> = None;
    while closing != Some(hashes) {
        let Some(c) = rest.next() else { return };
        closing = match (c, closing) {
            ('"', _) => Some(0),
            ('#', Some(seen)) => Some(seen + 1),
            _ => None,
        };
        leave_out(c, code);
    }
}

#[cfg(test)]
mod tests {
    use super::only_code;

    fn words(source: &str) -> Vec<String> {
        let code = only_code(source);
        assert_eq!(code.matches('\n').count(), source.matches('\n').count());
        code.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn comments_leave_nothing() {
        assert_eq!(words("a // x\nb /* x /* x */ \n x */ c"), ["a", "b", "c"]);
        assert_eq!(words("/// x `y`\n//! x's\na"), ["a"]);
    }

    #[test]
    fn literals_leave_nothing() {
        assert_eq!(words(r#"a "x \" // x" b"#), ["a", "b"]);
        assert_eq!(words("a r##\"x \"# x\n\"## + r\"x\\\" c"), ["a", "+", "c"]);
        let characters = r#"a '\'' b '\u{2f}' c '/' d '"' e"#;
        assert_eq!(words(characters), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn lifetimes_and_raw_names_stay() {
        assert_eq!(
            words("&'a str, 'x: r#type /* x */"),
            ["&'a", "str,", "'x:", "r#type"]
        );
        assert_eq!(words("for \"x\" fear#\"x\""), ["for", "fear#"]);
    }
}
