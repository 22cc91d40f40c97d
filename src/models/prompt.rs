//! Prompt formats: fill-in-the-middle (FIM, infill) prompts with markers, and chats with system prompts written as source comments.

use super::family::{Family, FimMarkers};
use super::tokenizer::Tokenizer;
use super::{Error, File, FimOrder, Message, Prompt, Result, Role};
use std::borrow::Cow;

/// One part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Encoded as ordinary text, even where it spells a control token.
    Text(Cow<'a, str>),
    /// A control token by its text in the vocabulary, such as a FIM marker.
    Control(&'static str),
}

/// The parts of a prompt, in order.
///
/// # Errors
/// `Unsupported` for an infill prompt if the family has no fill-in-the-middle markers.
pub fn render<'a>(prompt: &'a Prompt, family: &Family) -> Result<Vec<Part<'a>>> {
    match prompt {
        Prompt::Text(text) => Ok(vec![Part::Text(text.into())]),
        Prompt::Chat { messages, language } => Ok(vec![Part::Text(chat_as_comments(messages, language.as_deref()).into())]),
        Prompt::Infill { prefix, suffix, path, repository, files, order } => {
            let fim = family
                .fim
                .as_ref()
                .ok_or_else(|| Error::Unsupported(format!("models of the family {:?} have no fill-in-the-middle markers", family.name)))?;
            let mut parts = repository_context(fim, repository.as_deref(), files);
            if let Some(path) = path {
                parts.extend([Part::Control(fim.file_marker), Part::Text(format!("{path}\n").into())]);
            }
            let (prefix, suffix) = (Part::Text(prefix.into()), Part::Text(suffix.into()));
            parts.extend(match order.unwrap_or(fim.order) {
                FimOrder::PrefixSuffixMiddle => {
                    [Part::Control(fim.prefix), prefix, Part::Control(fim.suffix), suffix, Part::Control(fim.middle)]
                }
                // The middle marker precedes the prefix, so that the middle directly continues it (the SPM variant of the paper at
                // `FimOrder`).
                FimOrder::SuffixPrefixMiddle => {
                    [Part::Control(fim.prefix), Part::Control(fim.suffix), suffix, Part::Control(fim.middle), prefix]
                }
            });
            Ok(parts)
        }
    }
}

/// The repository's name and its other files, in the repository-level format of Qwen2.5-Coder
/// (arXiv:2409.12186, section 3.2.2).
fn repository_context<'a>(fim: &FimMarkers, repository: Option<&str>, files: &'a [File]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    if let Some(name) = repository {
        parts.extend([Part::Control(fim.repository_marker), Part::Text(format!("{name}\n").into())]);
    }
    for File { path, text } in files {
        parts.extend([Part::Control(fim.file_marker), Part::Text(format!("{path}\n{text}\n").into())]);
    }
    parts
}

/// The token ids of the parts, after BOS if the tokenizer adds one. Each text part is encoded separately, so no token spans
/// two parts.
///
/// # Errors
/// `ModelFile` if a marker is not in the vocabulary.
pub fn encode(parts: &[Part<'_>], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut tokens: Vec<u32> = tokenizer.bos().into_iter().collect();
    for part in parts {
        match part {
            Part::Text(text) => tokens.extend(tokenizer.encode(text)?),
            Part::Control(name) => {
                let id = tokenizer.control(name);
                tokens.push(id.ok_or_else(|| tokenizer.error(name, "this marker is not in the vocabulary"))?);
            }
        }
    }
    Ok(tokens)
}

/// The messages in order, with a blank line between them. System messages become comments in the syntax of `language`
/// (`# System: {content}`); user and assistant messages stay plain text.
fn chat_as_comments(messages: &[Message], language: Option<&str>) -> String {
    let (open, close) = comment_syntax(language.unwrap_or(""));
    let turn = |message: &Message| match message.role {
        Role::User | Role::Assistant => message.content.clone(),
        Role::System => {
            let comment = |(i, line): (usize, &str)| format!("{open} {}{line}{close}", if i == 0 { "System: " } else { "" });
            message.content.split('\n').enumerate().map(comment).collect::<Vec<_>>().join("\n")
        }
    };
    messages.iter().map(turn).collect::<Vec<_>>().join("\n\n")
}

/// The opening and closing comment delimiters; `#` for an unknown language.
fn comment_syntax(language: &str) -> (&'static str, &'static str) {
    match language.to_lowercase().as_str() {
        "c" | "cpp" | "c++" | "csharp" | "c#" | "dart" | "go" | "java" | "javascript" | "javascriptreact" | "js" | "jsx" | "kotlin"
        | "objective-c" | "php" | "proto" | "rust" | "scala" | "scss" | "swift" | "ts" | "tsx" | "typescript" | "typescriptreact"
        | "zig" => ("//", ""),
        "ada" | "elm" | "haskell" | "lua" | "sql" | "vhdl" => ("--", ""),
        "clojure" | "elisp" | "emacs-lisp" | "ini" | "lisp" | "racket" | "scheme" => (";", ""),
        "erlang" | "latex" | "matlab" | "prolog" | "tex" => ("%", ""),
        "css" => ("/*", " */"),
        "html" | "markdown" | "svelte" | "vue" | "xml" => ("<!--", " -->"),
        "ocaml" => ("(*", " *)"),
        "vim" | "vimscript" => ("\"", ""),
        _ => ("#", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(language: Option<&str>, messages: &[(Role, &str)]) -> String {
        let messages: Vec<_> = messages.iter().map(|&(role, content)| Message { role, content: content.into() }).collect();
        chat_as_comments(&messages, language)
    }

    #[test]
    fn a_system_prompt_becomes_a_comment() {
        let messages = [(Role::System, "be brief"), (Role::User, "def f():")];
        assert_eq!(chat(None, &messages), "# System: be brief\n\ndef f():");
        assert_eq!(chat(Some("Rust"), &messages), "// System: be brief\n\ndef f():");
        assert_eq!(chat(Some("html"), &messages), "<!-- System: be brief -->\n\ndef f():");
        assert_eq!(chat(Some("klingon"), &messages), "# System: be brief\n\ndef f():");
    }

    #[test]
    fn every_line_of_a_system_prompt_is_commented() {
        assert_eq!(chat(Some("lua"), &[(Role::System, "a\nb"), (Role::User, "x")]), "-- System: a\n-- b\n\nx");
    }

    #[test]
    fn other_turns_are_plain_text() {
        assert_eq!(chat(None, &[(Role::User, "x"), (Role::Assistant, "y"), (Role::User, "z")]), "x\n\ny\n\nz");
    }
}
