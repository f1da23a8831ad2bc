//! How long AWS takes to hear of its own changes: every asker learns of every change after a delay of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use slipway_states::clock::ScaledClock;

/// Delays between a change and its being believed, in simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    /// The same seed gives the same change, for the same asker, the same delay.
    pub seed: u64,
    /// No delay is shorter.
    pub shortest: Duration,
    /// No delay is as long, unless it equals the shortest.
    pub longest: Duration,
}

impl Propagation {
    /// Whoever asks has heard of everything.
    #[must_use]
    pub const fn none() -> Self {
        Self { seed: 0, shortest: Duration::ZERO, longest: Duration::ZERO }
    }

    /// The delays of an ordinary day, 2 to 15 s.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed, shortest: Duration::from_secs(2), longest: Duration::from_secs(15) }
    }

    /// How long `by` takes to hear of the `number`th change of a thing.
    fn delay(&self, thing: &str, number: u64, by: &str) -> Duration {
        let share = f64::from(draw(self.seed, &format!("{thing} {number} {by}"))) / (f64::from(u32::MAX) + 1.0);
        self.shortest + self.longest.saturating_sub(self.shortest).mul_f64(share)
    }
}

impl Default for Propagation {
    fn default() -> Self {
        Self::seeded(1)
    }
}

/// A number that depends on nothing but the seed and what it is for.
fn draw(seed: u64, purpose: &str) -> u32 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(purpose).finalize();
    digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// What was changed lately, and who has heard of it. A thing that was never changed here is old and believed.
#[derive(Debug)]
pub struct Changes {
    propagation: Mutex<Propagation>,
    clock: ScaledClock,
    /// By thing (an ARN), oldest first.
    recent: Mutex<HashMap<String, Vec<Change>>>,
}

#[derive(Debug)]
struct Change {
    number: u64,
    at: Instant,
    /// What the thing was before; `None` if it was not.
    before: Option<Value>,
}

impl Changes {
    /// No changes yet.
    #[must_use]
    pub fn new(propagation: Propagation, clock: ScaledClock) -> Self {
        Self { propagation: Mutex::new(propagation), clock, recent: Mutex::default() }
    }

    /// From now on these delays hold, also for what was changed before.
    pub fn delay_by(&self, propagation: Propagation) {
        *self.propagation.lock().unwrap_or_else(PoisonError::into_inner) = propagation;
    }

    fn propagation(&self) -> Propagation {
        *self.propagation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that a thing was made (`before` is `None`) or changed just now.
    pub fn record(&self, thing: &str, before: Option<Value>) {
        let longest = self.clock.real(self.propagation().longest);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = recent.entry(thing.to_owned()).or_default();
        let number = changes.last().map_or(0, |last| last.number + 1);
        // What everybody has heard of needs no memory; the last stays for its number.
        changes.retain(|change| change.number + 1 == number || change.at.elapsed() < longest);
        changes.push(Change { number, at: Instant::now(), before });
    }

    /// What `by` (a service, or one of its hosts) takes a thing to be that is `now`: the outcome of the latest change
    /// that it has heard of. `None` where it has not even heard of the thing's making.
    #[must_use]
    pub fn seen(&self, thing: &str, by: &str, now: Value) -> Option<Value> {
        let propagation = self.propagation();
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = Some(now);
        for change in recent.get(thing).into_iter().flatten().rev() {
            let delay = self.clock.real(propagation.delay(thing, change.number, by));
            if change.at.elapsed() >= delay {
                break;
            }
            seen.clone_from(&change.before);
        }
        seen
    }

    /// Whether `by` has heard that a thing was made.
    #[must_use]
    pub fn believed(&self, thing: &str, by: &str) -> bool {
        self.seen(thing, by, Value::Null).is_some()
    }

    /// Which of `hosts` answers for the `number`th time: chosen by the seed, as a load balancer would.
    #[must_use]
    pub fn host(&self, number: u64, hosts: u32) -> u32 {
        draw(self.propagation().seed, &format!("host {number}")) % hosts.max(1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/controller";

    /// Delays that are over at once, or not while a test runs.
    fn changes(longest_s: u64) -> Changes {
        let longest = Duration::from_secs(longest_s);
        Changes::new(Propagation { seed: 7, shortest: longest, longest }, ScaledClock::new(1.0))
    }

    #[test]
    fn a_seed_gives_each_asker_its_own_delay_and_always_the_same() {
        let delays = |seed: u64| -> Vec<Duration> {
            (0..50).map(|host| Propagation::seeded(seed).delay(ROLE, 0, &format!("sts-{host}"))).collect()
        };
        let drawn = delays(3);
        assert_eq!(drawn, delays(3));
        assert_ne!(drawn, delays(4));
        let (least, most) = (drawn.iter().min(), drawn.iter().max());
        assert!(least >= Some(&Duration::from_secs(2)) && least < Some(&Duration::from_secs(4)), "{least:?}");
        assert!(most < Some(&Duration::from_secs(15)) && most > Some(&Duration::from_secs(13)), "{most:?}");
    }

    #[test]
    fn what_is_new_is_unheard_of_and_what_changed_is_what_it_was() {
        let changes = changes(600);
        assert!(changes.believed("arn:aws:iam::111122223333:role/old", "eks"));
        changes.record(ROLE, Some(json!("first")));
        assert_eq!(changes.seen(ROLE, "eks", json!("second")), Some(json!("first")));
        assert!(changes.believed(ROLE, "eks"));
        changes.record(ROLE, None);
        assert_eq!(changes.seen(ROLE, "eks", json!("made anew")), Some(json!("first")));
        changes.record("arn:new", None);
        assert!(!changes.believed("arn:new", "eks"));
    }

    #[test]
    fn without_delay_all_is_heard_of() {
        let changes = Changes::new(Propagation::none(), ScaledClock::new(60.0));
        changes.record(ROLE, None);
        changes.record(ROLE, Some(json!("first")));
        assert_eq!(changes.seen(ROLE, "eks", json!("second")), Some(json!("second")));
    }

    #[test]
    fn a_heard_change_hides_the_ones_before_it() {
        let changes = changes(600);
        changes.record(ROLE, None);
        if let Some(change) =
            changes.recent.lock().unwrap_or_else(PoisonError::into_inner).get_mut(ROLE).and_then(|all| all.last_mut())
        {
            change.at -= Duration::from_mins(11);
        }
        changes.record(ROLE, Some(json!("first")));
        assert_eq!(changes.seen(ROLE, "sts-0", json!("second")), Some(json!("first")));
    }

    #[test]
    fn hosts_take_turns_as_the_seed_says() {
        let changes = changes(1);
        let hosts: Vec<u32> = (0..30).map(|number| changes.host(number, 3)).collect();
        assert!((0..3).all(|host| hosts.contains(&host)), "{hosts:?}");
        assert!(hosts.windows(2).any(|pair| pair[0] == pair[1]), "{hosts:?}");
    }
}
