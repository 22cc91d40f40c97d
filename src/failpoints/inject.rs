//! What happens at a point where a fault waits.

use super::{Action, Point};
use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
    process,
    sync::OnceLock,
    thread,
};

/// A point where nothing can return an error. `seed` is that of the request, where there is one.
pub(crate) fn at(point: Point, seed: Option<u64>) {
    if let Err(error) = check(point, seed) {
        panic!("{} can't return {error}", point.spec().0);
    }
}

/// A point that may return an error.
pub(crate) fn check(point: Point, seed: Option<u64>) -> io::Result<()> {
    let Some(action) = waiting(point, seed) else { return Ok(()) };
    tracing::warn!(point = point.spec().0, action = action.name(), "a fault on purpose");
    match action {
        Action::Panic => panic!("a fault on purpose"),
        Action::Abort => process::abort(),
        Action::Exit => process::exit(70),
        Action::Stall => loop {
            thread::park();
        },
        Action::Error => Err(io::Error::other("a fault on purpose")),
        Action::Short => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// A point before this frame is written.
pub(crate) fn write(point: Point, output: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let fault = check(point, None);
    if matches!(&fault, Err(error) if error.kind() == io::ErrorKind::WriteZero) {
        output.write_all(&frame[..frame.len() / 2])?;
    }
    fault
}

/// The fault that waits here for this request, which then waits no longer.
fn waiting(point: Point, seed: Option<u64>) -> Option<Action> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| env::var_os("SOUFFLEUR_FAILPOINTS").map(PathBuf::from)).as_ref()?;
    let file = folder.join(point.spec().0);
    let text = fs::read_to_string(&file).ok()?;
    let mut words = text.split_whitespace();
    let action = words.next()?;
    let (mut once, mut bound) = (true, None);
    for word in words {
        match word.strip_prefix("seed=").map(str::parse::<u64>) {
            Some(Ok(seed)) => bound = Some(seed),
            _ if word == "always" => once = false,
            Some(Err(_)) | None => unknown(&text),
        }
    }
    if bound.is_some() && bound != seed {
        return None;
    }
    let action = Action::ALL.into_iter().find(|known| known.name() == action).unwrap_or_else(|| unknown(&text));
    // Of two threads that come at once, one finds the file.
    (!once || fs::remove_file(&file).is_ok()).then_some(action)
}

fn unknown(text: &str) -> ! {
    eprintln!("souffleur: {text:?} is no fault");
    process::exit(2)
}
