//! The output of `bench`. No test checks how fast anything is.

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

fn bench(options: &[&str]) -> (bool, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_souffleur")).arg("bench").args(options).stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_measurement_and_every_ratio_is_in_the_json() {
    let (succeeded, out, err) = bench(&["--json", "--rounds", "1", "--threads", "2", "--only", "rows,start"]);
    assert!(succeeded, "{err}");
    let parts: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let names = |key: &str, part: &Value| {
        part[key].as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(parts.iter().map(|part| part["part"].as_str().expect("a part")).collect::<Vec<_>>(), ["rows", "start"]);
    assert_eq!(names("series", &parts[0]), ["a step of 8 rows of one text", "a step of 1 row"]);
    assert_eq!(names("ratios", &parts[0]), ["8 rows' time to 1 row's"]);
    for part in &parts {
        assert!(part["head"].as_str().expect("a head").starts_with("embedded: "), "{part}");
        for series in part["series"].as_array().expect("a list") {
            // One round, repeated once if other processes used the machine.
            match series["samples"].as_array().expect("a list").as_slice() {
                [only] => assert_eq!(only["value"], series["median"]),
                [first, _] => assert_eq!(first["quiet"], false, "{series}"),
                samples => panic!("{} samples", samples.len()),
            }
            assert!(series["median"].as_f64().is_some_and(|value| value > 0.0), "{series}");
        }
    }
    let rows = &parts[0];
    let median = |index: usize| rows["series"][index]["median"].as_f64().expect("a number");
    assert!((rows["ratios"][0]["value"].as_f64().expect("a number") - median(0) / median(1)).abs() < 1e-9);
}

#[test]
fn the_measurement_beside_a_busy_process_sets_its_own_threads_or_is_left_out() {
    let (succeeded, out, err) = bench(&["--json", "--rounds", "1", "--threads", "1", "--only", "beside"]);
    assert!(succeeded, "{err}");
    let part: Value = serde_json::from_str(&out).expect("one line of JSON");
    assert_eq!(part["part"], "beside");
    if std::thread::available_parallelism().expect("a number").get() < 2 {
        assert!(part["left_out"].is_string(), "{part}");
        return;
    }
    let ratios: Vec<&str> =
        part["ratios"].as_array().expect("a list").iter().map(|ratio| ratio["name"].as_str().expect("a name")).collect();
    assert_eq!(part["threads"], 2);
    assert_eq!(ratios, ["beside a busy processor, 2 threads to 1", "2 threads, beside a busy processor to alone"]);
}

#[cfg(unix)]
#[test]
fn the_busy_process_exits_with_its_parent() {
    // The shell prints the pid of the background process and exits. Its stdout, which the process inherits, closes when the
    // process exits.
    let script = format!("{} bench --cpu-hog $$ & echo $!", env!("CARGO_BIN_EXE_souffleur"));
    let mut shell = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("a shell");
    let mut output = BufReader::new(shell.stdout.take().expect("piped"));
    let mut pid = String::new();
    output.read_line(&mut pid).expect("a number");
    shell.wait().expect("the shell exits");
    let (sender, exited) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(output.read_line(&mut String::new())));
    let exited = exited.recv_timeout(Duration::from_secs(60));
    if exited.is_err() {
        Command::new("kill").args(["-9", pid.trim()]).status().expect("kill");
    }
    assert_eq!(exited.expect("the process exits within a minute").expect("readable"), 0);
}

#[test]
fn a_peer_needs_a_gguf_file() {
    let (succeeded, _, err) = bench(&["--peer", "llama-bench=/bin/true"]);
    assert!(!succeeded && err.contains("a peer reads .gguf files"), "{err}");
}
