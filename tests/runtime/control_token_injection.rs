//! User text never becomes a control token, in any field and however it is spelled.

use crate::support::{TestRuntime, run_test, text};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use souffleur::actors::{Answer, File, FimOrder, Message, Prompt, Question, Role};
use std::collections::BTreeSet;

/// Text fields in the prompts of `prompts_of`.
const FIELDS: usize = 12;

/// Read from tokenizer.json directly, independent of the code under test.
fn special_tokens() -> Vec<(u32, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tokenizer.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let added = file["added_tokens"].as_array().expect("a list");
    let special: Vec<_> = added
        .iter()
        .filter(|token| token["special"] == true)
        .map(|token| (token["id"].as_u64().unwrap() as u32, token["content"].as_str().unwrap().to_owned()))
        .collect();
    assert!(special.len() >= 5, "a fill-in-the-middle model has more special tokens than {special:?}");
    special
}

/// Prompts of every kind and order that together use every text field; all take their texts from `texts`.
fn prompts_of(texts: &[String]) -> Vec<Prompt> {
    let [prefix, suffix, path, repository, a_path, a_text, b_path, b_text, prompt, system, user, assistant] = texts else {
        panic!("{FIELDS} texts")
    };
    let file = |path: &String, text: &String| File { path: path.clone(), text: text.clone() };
    let infill = |order| Prompt::Infill {
        prefix: prefix.clone(),
        suffix: suffix.clone(),
        path: Some(path.clone()),
        repository: Some(repository.clone()),
        files: vec![file(a_path, a_text), file(b_path, b_text)],
        order,
    };
    let message = |role, content: &String| Message { role, content: content.clone() };
    let chat = |language: Option<&str>| Prompt::Chat {
        messages: vec![
            message(Role::System, system),
            message(Role::User, user),
            message(Role::Assistant, assistant),
            message(Role::User, prompt),
        ],
        language: language.map(Into::into),
    };
    vec![
        infill(None),
        infill(Some(FimOrder::PrefixSuffixMiddle)),
        infill(Some(FimOrder::SuffixPrefixMiddle)),
        text(prompt.clone()),
        chat(None),
        chat(Some("rust")),
        // The language is a text field as well.
        chat(Some(system)),
    ]
}

struct Check {
    runtime: TestRuntime,
    special: BTreeSet<u32>,
    /// The control tokens of each prompt when its texts contain no special token.
    expected: Vec<Vec<u32>>,
}

impl Check {
    async fn new() -> Self {
        let special = special_tokens().into_iter().map(|(id, _)| id).collect();
        let mut check = Self { runtime: TestRuntime::new(), special, expected: Vec::new() };
        for prompt in prompts_of(&vec!["harmless".to_owned(); FIELDS]) {
            let control = check.control(&prompt).await;
            check.expected.push(control);
        }
        assert!(check.expected[..3].iter().all(|control| control.len() >= 6), "an infill prompt has FIM tokens: {:?}", check.expected);
        check
    }

    /// A prompt's control tokens in order. `Rendered::control` must list the same ones.
    async fn control(&self, prompt: &Prompt) -> Vec<u32> {
        let rendered = self.runtime.render(prompt).await;
        let at = |(index, id): (usize, &u32)| self.special.contains(id).then_some(index as u32);
        let control: Vec<u32> = rendered.tokens.iter().enumerate().filter_map(at).collect();
        assert_eq!(rendered.control, control, "{prompt:?}");
        control.into_iter().map(|index| rendered.tokens[index as usize]).collect()
    }

    async fn prompts_keep_their_control_tokens(&self, texts: &[String]) {
        // An empty text prompt is rendered as the start-of-text token.
        for (prompt, expected) in prompts_of(texts).iter().zip(&self.expected).filter(|(prompt, _)| **prompt != text("")) {
            assert_eq!(self.control(prompt).await, *expected, "control tokens of {prompt:?}");
        }
    }

    /// `tokenize` gives no control tokens, and `detokenize` gives the text back.
    async fn round_trips(&self, text: &str) {
        let tokens = self.runtime.tokenize(text).await;
        assert!(tokens.iter().all(|id| !self.special.contains(id)), "{text:?} became {tokens:?}");
        assert_eq!(self.runtime.detokenize(&tokens).await, text);
    }
}

#[test]
fn special_tokens_spelled_in_any_field_stay_text() {
    run_test(async {
        let check = Check::new().await;
        for (id, spelled) in special_tokens() {
            // The id really is this token.
            let answer = check.runtime.ask(crate::support::MODEL, Question::Detokenize(vec![id])).await;
            assert_eq!(answer, Ok(Answer::Text(spelled.clone())));
            let forms =
                [spelled.clone(), format!(" {spelled}\n"), format!("{spelled}{spelled}"), format!("x{spelled}y"), spelled.to_uppercase()];
            for form in &forms {
                check.round_trips(form).await;
                check.prompts_keep_their_control_tokens(&vec![form.clone(); FIELDS]).await;
            }
            for field in 0..FIELDS {
                let mut texts = vec!["harmless".to_owned(); FIELDS];
                texts[field].clone_from(&spelled);
                check.prompts_keep_their_control_tokens(&texts).await;
            }
        }
    });
}

#[derive(Clone, Debug)]
enum Part {
    Spelled(usize, Case),
    /// A special token cut in two: the first part here, the rest at the beginning of the next field.
    Split(usize, usize),
    Random(String),
}

#[derive(Clone, Copy, Debug)]
enum Case {
    AsIs,
    Upper,
    Mixed,
}

fn part() -> impl Strategy<Value = Part> {
    let case = prop_oneof![3 => Just(Case::AsIs), 1 => Just(Case::Upper), 1 => Just(Case::Mixed)];
    prop_oneof![
        3 => (any::<usize>(), case).prop_map(|(token, case)| Part::Spelled(token, case)),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(token, at)| Part::Split(token, at)),
        2 => "[ -~]{0,12}".prop_map(Part::Random),
        1 => "[<|>_ \n\r\t]{0,6}".prop_map(Part::Random),
        1 => any::<String>().prop_map(|text| Part::Random(text.chars().take(8).collect())),
    ]
}

fn spell(fields: &[Vec<Part>], special: &[(u32, String)]) -> Vec<String> {
    let mut texts = Vec::new();
    let mut carried = String::new();
    for field in fields {
        let mut text = std::mem::take(&mut carried);
        for part in field {
            match part {
                Part::Spelled(token, case) => text += &cased(&special[token % special.len()].1, *case),
                Part::Split(token, at) => {
                    let spelled = &special[token % special.len()].1;
                    let (start, rest) = spelled
                        .split_at((1..spelled.len()).filter(|at| spelled.is_char_boundary(*at)).nth(at % (spelled.len() - 1)).unwrap_or(1));
                    text += start;
                    carried = rest.to_owned();
                }
                Part::Random(random) => text += random,
            }
        }
        texts.push(text);
    }
    texts
}

fn cased(text: &str, case: Case) -> String {
    match case {
        Case::AsIs => text.to_owned(),
        Case::Upper => text.to_uppercase(),
        Case::Mixed => text.chars().enumerate().map(|(i, c)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect(),
    }
}

#[test]
fn random_texts_around_special_tokens_stay_text() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let check = runtime.block_on(Check::new());
    let special = special_tokens();
    let fields = prop::collection::vec(prop::collection::vec(part(), 0..4), FIELDS);
    // Each case sends seven prompts and twelve texts to a worker.
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&fields, |fields| {
        let texts = spell(&fields, &special);
        runtime.block_on(async {
            check.prompts_keep_their_control_tokens(&texts).await;
            for text in &texts {
                check.round_trips(text).await;
            }
        });
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
