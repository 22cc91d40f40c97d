//! Injects the failure of an armed failpoint.

use super::{Action, Point};
use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
    process,
    sync::OnceLock,
    thread,
};

/// A failpoint in code that cannot return an error. `seed` is the request's, if there is a request.
pub(crate) fn at(point: Point, seed: Option<u64>) {
    if let Err(error) = check(point, seed) {
        panic!("{} cannot return {error}", point.spec().0);
    }
}

/// A failpoint that can return an error.
pub(crate) fn check(point: Point, seed: Option<u64>) -> io::Result<()> {
    let Some(action) = armed(point, seed) else { return Ok(()) };
    tracing::warn!(point = point.spec().0, action = action.name(), "failpoint");
    match action {
        Action::Panic => panic!("injected fault"),
        Action::Abort => process::abort(),
        Action::Exit => process::exit(70),
        Action::Stall => loop {
            thread::park();
        },
        Action::Error => Err(io::Error::other("injected fault")),
        Action::Short => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// A failpoint before `frame` is written.
pub(crate) fn write(point: Point, output: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let fault = check(point, None);
    if matches!(&fault, Err(error) if error.kind() == io::ErrorKind::WriteZero) {
        output.write_all(&frame[..frame.len() / 2])?;
    }
    fault
}

/// The action if the point is armed for this request. Disarms the point unless its file says `always`.
fn armed(point: Point, seed: Option<u64>) -> Option<Action> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| env::var_os("SOUFFLEUR_FAILPOINTS").map(PathBuf::from)).as_ref()?;
    let file = folder.join(point.spec().0);
    let text = fs::read_to_string(&file).ok()?;
    let mut words = text.split_whitespace();
    let action = words.next()?;
    let (mut once, mut only_seed) = (true, None);
    for word in words {
        match word.strip_prefix("seed=").map(str::parse::<u64>) {
            Some(Ok(seed)) => only_seed = Some(seed),
            _ if word == "always" => once = false,
            Some(Err(_)) | None => unknown(&text),
        }
    }
    if only_seed.is_some() && only_seed != seed {
        return None;
    }
    let action = Action::ALL.into_iter().find(|known| known.name() == action).unwrap_or_else(|| unknown(&text));
    // If two threads are here at the same time, only one removes the file.
    (!once || fs::remove_file(&file).is_ok()).then_some(action)
}

fn unknown(text: &str) -> ! {
    eprintln!("souffleur: {text:?} is not an action with `seed=N` or `always`");
    process::exit(2)
}
