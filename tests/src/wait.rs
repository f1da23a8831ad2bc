//! Waiting for what comes by itself, with a bound.

use std::time::{Duration, Instant};

/// Asks until there is something, for two minutes at most: seconds on an idle machine.
///
/// # Panics
/// When there never is; `what` says of what.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_mins(2), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
