//! The one place that says how fast simulated time runs.

use std::time::Duration;

/// Wall-clock time, with waits that pass `speed` times faster. Timestamps stay real, so certificates, tokens
/// and the state table agree with everybody; only what AWS would make us wait for is shortened.
#[derive(Debug, Clone, Copy)]
pub struct ScaledClock {
    speed: f64,
}

impl ScaledClock {
    /// `speed` 60 makes nine simulated minutes pass in nine seconds. Must be positive.
    #[must_use]
    pub const fn new(speed: f64) -> Self {
        Self { speed }
    }

    /// How many times faster simulated time passes.
    #[must_use]
    pub const fn speed(&self) -> f64 {
        self.speed
    }

    /// How long a simulated duration takes here.
    #[must_use]
    pub fn real(&self, simulated: Duration) -> Duration {
        simulated.div_f64(self.speed)
    }

    /// Sleeps for a simulated duration.
    pub async fn sleep(&self, simulated: Duration) {
        tokio::time::sleep(self.real(simulated)).await;
    }
}
