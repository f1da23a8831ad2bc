//! Live progress as text: a table that is painted again on a terminal, a line for every change elsewhere.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::progress::{Progress, Status, Step};

/// How much of a cause fits behind a step: the whole is in the execution's history.
const CAUSE: usize = 160;

/// Shows an execution's progress, each time as it stands.
pub trait Show {
    /// Shows what has changed. `now` in milliseconds since the epoch: what is open lasts until then.
    ///
    /// # Errors
    /// When the writer fails.
    fn show(&mut self, progress: &Progress, now: i64) -> io::Result<()>;
}

/// A table on a terminal.
pub struct Table<W> {
    writer: W,
    colours: bool,
    painted: usize,
}

impl<W: Write> Table<W> {
    /// A table that begins where the cursor is.
    pub const fn new(writer: W, colours: bool) -> Self {
        Self { writer, colours, painted: 0 }
    }
}

impl<W: Write> Show for Table<W> {
    fn show(&mut self, progress: &Progress, now: i64) -> io::Result<()> {
        let lines = table(progress, now, self.colours);
        // Without wrapping a long line is cut by the terminal, so a line stays one line whatever the width.
        let mut frame = String::from("\u{1b}[?7l");
        if self.painted > 0 {
            let _ = write!(frame, "\u{1b}[{}A", self.painted);
        }
        for line in &lines {
            let _ = write!(frame, "\r\u{1b}[2K{line}\n");
        }
        frame.push_str("\u{1b}[?7h");
        // Steps are never taken away, so the table never shrinks.
        self.painted = lines.len();
        self.writer.write_all(frame.as_bytes())?;
        self.writer.flush()
    }
}

/// A line for every change.
pub struct Lines<W> {
    writer: W,
    shown: Vec<Status>,
    ended: bool,
}

impl<W: Write> Lines<W> {
    /// Lines from the first change on.
    pub const fn new(writer: W) -> Self {
        Self { writer, shown: Vec::new(), ended: false }
    }
}

impl<W: Write> Show for Lines<W> {
    fn show(&mut self, progress: &Progress, now: i64) -> io::Result<()> {
        for (index, step) in progress.steps.iter().enumerate() {
            // Asking again is no news; that a step runs is, once.
            let seen = self.shown.get(index);
            if seen.is_some() && (seen == Some(&step.status) || step.status == Status::Running) {
                continue;
            }
            let at = duration(progress.end.as_ref().map_or(now, |end| end.at) - progress.started);
            writeln!(self.writer, "{at:>10}  {:<25} {}", step.name, what(progress, step))?;
            if index < self.shown.len() {
                self.shown[index] = step.status.clone();
            } else {
                self.shown.push(step.status.clone());
            }
        }
        if let Some(end) = progress.end.as_ref().filter(|_| !self.ended) {
            self.ended = true;
            let error = end.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            writeln!(self.writer, "{:>10}  {}{error}", duration(progress.duration_millis()), end.status)?;
        }
        self.writer.flush()
    }
}

/// The table's lines: a head, then a line for each step in the order of their beginnings.
#[must_use]
pub fn table(progress: &Progress, now: i64, colours: bool) -> Vec<String> {
    let status = progress.end.as_ref().map_or("RUNNING", |end| end.status.as_str());
    let elapsed = progress.end.as_ref().map_or(now, |end| end.at) - progress.started;
    let done = progress.steps.iter().filter(|step| step.status == Status::Done).count();
    let head = format!("{status}  {}  {done} of {} steps begun are done", duration(elapsed), progress.steps.len());
    let mut lines = vec![paint(&head, "1", colours)];
    for step in &progress.steps {
        let (from, to) = progress.span(step);
        let open = matches!(step.status, Status::Running | Status::Waiting { .. } | Status::Retrying { .. });
        let lasted = duration(if open && progress.end.is_none() { now } else { to } - from);
        let (sign, colour) = match step.status {
            Status::Running => ("▶", "36"),
            Status::Waiting { .. } => ("…", "33"),
            Status::Retrying { .. } => ("↻", "35"),
            Status::Done => ("✔", "32"),
            Status::Failed { .. } => ("✘", "31"),
            Status::Aborted => ("■", "31"),
        };
        let what = match step.status {
            Status::Done => progress.note(step).unwrap_or_default(),
            _ => what(progress, step),
        };
        let line = format!("{} {:<25} {lasted:>10}  {what}", paint(sign, colour, colours), step.name);
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn what(progress: &Progress, step: &Step) -> String {
    match &step.status {
        Status::Running => "running".to_owned(),
        Status::Waiting { detail } if detail.is_empty() => "waiting".to_owned(),
        Status::Waiting { detail } => format!("waiting: {}", short(detail)),
        Status::Retrying { error, cause } => {
            format!("tried again after {error} (try {}): {}", step.retries + 2, short(cause))
        }
        Status::Done => progress.note(step).map_or_else(|| "done".to_owned(), |note| format!("done: {note}")),
        Status::Failed { error, cause } => format!("failed with {error}: {}", short(cause)),
        Status::Aborted => "stopped".to_owned(),
    }
}

/// One line, not too long.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= CAUSE {
        return line;
    }
    line.chars().take(CAUSE - 1).chain(['…']).collect()
}

fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// `7.3 s`, `2 min 05 s`, `1 h 04 min`.
#[must_use]
pub fn duration(millis: i64) -> String {
    let millis = millis.max(0);
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}
