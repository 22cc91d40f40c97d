//! Every way a text can end, and those in which it can't begin.

use crate::support::{House, Told, ask, endless, hole, text, within};
use souffleur::actors::{Error, FimOrder, FinishReason, Message, Prompt, Request, Role, Sampling};
use souffleur::models;

const PROMPT: &str = "def mean(values):\n    \"\"\"The mean of some values.\"\"\"\n    total = 0\n";

#[test]
fn a_text_ends_before_its_stop_sequence_however_tokens_cut_it() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        let endless = Sampling { logit_bias: endless(&card), ..Sampling::default() };
        let request = Request { sampling: endless, ..ask(text(PROMPT), 40) };
        let whole = house.run(request.clone()).await;
        let mut boundaries = Vec::new();
        for count in 1..=whole.tokens.len() {
            boundaries.push(house.detokenize(&whole.ids()[..count]).await.len());
        }
        let (mut across, mut tried) = (0, 0);
        for start in (1..whole.text.len()).step_by(5) {
            let end = (start + 2 + start % 5).min(whole.text.len());
            let Some(stop) = whole.text.get(start..end).filter(|stop| !stop.is_empty()) else { continue };
            let at = whole.text.find(stop).expect("it is from this text");
            let told = house.run(Request { stop: vec!["\u{1}never".into(), stop.into()], ..request.clone() }).await;
            assert_eq!((told.text.as_str(), told.reason()), (&whole.text[..at], FinishReason::Stop), "stop {stop:?}");
            // It stopped with the token that completed the sequence.
            let last = boundaries.iter().position(|boundary| *boundary >= at + stop.len()).expect("the text goes that far");
            assert_eq!(told.tokens[..], whole.tokens[..=last], "stop {stop:?}");
            assert_eq!(told.usage().completion_tokens as usize, last + 1);
            across += usize::from(boundaries.iter().any(|boundary| (at + 1..at + stop.len()).contains(boundary)));
            tried += 1;
        }
        assert!(across >= 3 && tried >= 8, "only {across} of {tried} stop sequences lay across tokens");
        // What only began is told when the text ends without it.
        let tail = &whole.text[whole.text.len() - 1..];
        let told = house.run(Request { stop: vec![format!("{tail}\u{1}")], ..request }).await;
        assert_eq!((told.text.as_str(), told.reason()), (whole.text.as_str(), FinishReason::Length));
    });
}

/// A character of two tokens, said again and again: the sampler may choose between the two and never repeats itself.
async fn two_token_character(house: &House) -> (char, Request) {
    for character in ['é', 'ß', 'λ', '→', '☃', 'ж', '日', '本', 'ø', '\u{10d}', '\u{1F980}', '\u{2713}'] {
        let [first, second] = house.tokenize(&character.to_string()).await[..] else { continue };
        let prompt = format!("let s = \"{character}");
        if first == second || house.tokenize(&prompt).await.last() != Some(&second) {
            continue;
        }
        let bias = vec![(first, 1000.0), (second, 1000.0)];
        let sampling = Sampling { logit_bias: bias, presence_penalty: 500.0, repetition_window: 1, ..Sampling::default() };
        return (character, Request { sampling, ..ask(text(prompt), 9) });
    }
    panic!("none of these characters takes two tokens; find one that does in this vocabulary")
}

#[test]
fn characters_come_whole_and_stop_across_their_tokens() {
    within(async {
        let house = House::warm();
        let (character, request) = two_token_character(&house).await;
        let mut reader = house.runtime.complete(request.clone()).unwrap();
        let mut told = Told::default();
        for count in 1.. {
            let going = told.reach(&mut reader, count).await;
            assert!(told.text.chars().all(|c| c == character), "half a character in {:?}", told.text);
            if !going {
                break;
            }
        }
        // Nine tokens are four characters and a half.
        assert_eq!(told.text.chars().filter(|c| *c == character).count(), 4);
        assert_eq!(told.reason(), FinishReason::Length);

        let stop = vec![character.to_string().repeat(3)];
        let stopped = house.run(Request { stop, ..request.clone() }).await;
        assert_eq!((stopped.text.as_str(), stopped.reason(), stopped.tokens.len()), ("", FinishReason::Stop, 6));
        let never = vec![format!("{}x", character.to_string().repeat(2))];
        let held = house.run(Request { stop: never, ..request }).await;
        assert_eq!((held.text.as_str(), held.reason()), (told.text.as_str(), FinishReason::Length));
    });
}

#[test]
fn length_and_end_of_text_are_told_apart() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        for tokens_max in [1, 2, 7] {
            let told = house.run(ask(text(PROMPT), tokens_max)).await;
            assert_eq!((told.reason(), told.tokens.len()), (FinishReason::Length, tokens_max as usize));
            assert_eq!(told.usage().completion_tokens, tokens_max);
        }
        for (eos, spelled) in &card.eos {
            let sampling = Sampling { logit_bias: vec![(*eos, 1000.0)], ..Sampling::default() };
            let told = house.run(Request { sampling, ..ask(text(PROMPT), 7) }).await;
            assert_eq!((told.reason(), told.text.as_str(), told.ids()), (FinishReason::Eos, "", vec![*eos]), "{spelled}");
        }
    });
}

#[test]
fn a_context_is_full_at_its_last_token_and_not_before() {
    within(async {
        let house = House::warm();
        let context = house.model_info().await.context_length as usize;
        let told = house.run(ask(text(house.text_of(context - 1, 1).await), 5)).await;
        assert_eq!((told.reason(), told.tokens.len()), (FinishReason::Length, 1));
        assert_eq!(told.usage().prompt_tokens as usize, context - 1);

        for beyond in [0, 1, 300] {
            let told = house.run(ask(text(house.text_of(context + beyond, 1).await), 5)).await;
            let expected = models::Error::ContextOverflow { needed: (context + beyond) as u64, limit: context as u64 };
            assert_eq!(told.error(), &Error::Model(expected));
            assert!(told.tokens.is_empty());
        }
        let endless = Sampling { logit_bias: endless(&house.model_info().await), ..Sampling::default() };
        let told = house.run(Request { sampling: endless, ..ask(text(house.text_of(context - 10, 1).await), 50) }).await;
        assert_eq!((told.reason(), told.tokens.len()), (FinishReason::Length, 10));
    });
}

#[test]
fn nothing_said_is_the_start_of_a_text() {
    within(async {
        let house = House::warm();
        let order =
            |order| Prompt::Infill { prefix: String::new(), suffix: String::new(), path: None, repository: None, files: vec![], order };
        let nothing = Message { role: Role::User, content: String::new() };
        let prompts = [
            text(""),
            hole("", ""),
            order(None),
            order(Some(FimOrder::PrefixSuffixMiddle)),
            Prompt::Chat { messages: vec![], language: None },
            Prompt::Chat { messages: vec![nothing], language: None },
        ];
        for prompt in prompts {
            let told = house.run(ask(prompt.clone(), 4)).await;
            assert!(told.usage().prompt_tokens >= 1 && !told.tokens.is_empty(), "{prompt:?}: {told:?}");
        }
    });
}

#[test]
fn an_unknown_model_is_told_which_are_known() {
    within(async {
        let house = House::warm();
        let expected = Error::UnknownModel { name: "nobody".into(), known: vec!["embedded".into()] };
        let request = Request { model: "nobody".into(), ..ask(text(PROMPT), 4) };
        assert_eq!(house.runtime.complete(request).err(), Some(expected.clone()));
        assert_eq!(house.runtime.load("nobody", |_, _| {}).await, Err(expected.clone()));
        assert_eq!(house.runtime.show("nobody").await, Err(expected));
    });
}
