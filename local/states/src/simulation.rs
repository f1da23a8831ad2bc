//! The same interpreter on a virtual clock, with closures as tasks: hours of waiting in microseconds, and the same
//! run again for the same seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::FutureExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::channel::oneshot;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use crate::definition::{Pattern, StateMachine};
use crate::failure::{Failure, TaskError};
use crate::history::{Event, History};
use crate::interpreter::{Callback, Ending, Run, Submitted, TaskCall, World, timestamp};
use crate::random::Random;

/// A task as a closure sees it.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// The state that runs it.
    pub state: &'a str,
    /// The state's Resource.
    pub resource: &'a str,
    /// Arguments, evaluated. For `lambda:invoke` with `FunctionName` and `Payload`.
    pub arguments: &'a Value,
    /// How many times this visit to the state has retried.
    pub retry_count: u64,
    /// Virtual milliseconds since the execution started.
    pub elapsed: i64,
    /// The run's dice.
    pub random: &'a Random,
}

/// What a closure answers.
#[derive(Debug)]
pub struct Answer {
    /// How long the task takes.
    pub after: Duration,
    /// The result as `$states.result` has it, or the failure.
    pub result: Result<Value, TaskError>,
}

/// A simulated execution.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// The output, or the failure. A timed-out execution fails with `States.Timeout`.
    pub result: Result<Value, Failure>,
    /// The whole history.
    pub events: Vec<Event>,
    /// Virtual time from start to end.
    pub duration: Duration,
}

/// A simulation that cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the execution waits for something that never happens: a task token without TimeoutSeconds?")]
pub struct Stuck;

/// 2026-01-01T00:00:00Z: where virtual time begins, in milliseconds since the epoch.
pub const START: i64 = 1_767_225_600_000;

/// Runs a machine to its end.
///
/// # Errors
/// [`Stuck`] where virtual time cannot move on, though the execution has not ended.
pub fn simulate(
    machine: &Arc<StateMachine>,
    input: &Value,
    seed: u64,
    task: impl FnMut(&Invocation<'_>) -> Answer + Send + 'static,
) -> Result<Simulated, Stuck> {
    let clock = Arc::new(VirtualClock::default());
    let world = Arc::new(VirtualWorld {
        clock: Arc::clone(&clock),
        task: Mutex::new(Box::new(task)),
        random: Random::seeded(!seed),
        tokens: Mutex::default(),
    });
    let history = Arc::new(History::default());
    let arn = format!("arn:aws:states:eu-west-1:111122223333:execution:simulated:{seed}");
    let execution = json!({
        "Id": arn, "Input": input, "Name": seed.to_string(), "RoleArn": "arn:aws:iam::111122223333:role/simulated",
        "StartTime": timestamp(START), "RedriveCount": 0,
    });
    let machine_context =
        json!({ "Id": "arn:aws:states:eu-west-1:111122223333:stateMachine:simulated", "Name": "simulated" });
    let context = Map::from_iter([("Execution".to_owned(), execution), ("StateMachine".to_owned(), machine_context)]);
    let run = Run {
        machine: Arc::clone(machine),
        world,
        history: Arc::clone(&history),
        random: Random::seeded(seed),
        context: Arc::new(context),
        role_arn: "arn:aws:iam::111122223333:role/simulated".to_owned(),
        region: "eu-west-1".to_owned(),
        last: AtomicU64::new(0),
    };
    let ending = clock.run(run.execute(input.clone())).ok_or(Stuck)?;
    let result = match ending {
        Ending::Succeeded(output) => Ok(output),
        Ending::Failed(failure) => Err(failure),
        Ending::TimedOut => Err(Failure::new(crate::failure::TIMEOUT, "")),
    };
    let duration = Duration::from_millis(u64::try_from(clock.now() - START).unwrap_or(0));
    Ok(Simulated { result, events: history.between(1, u64::MAX), duration })
}

/// Time that moves only when everything waits.
#[derive(Default)]
struct VirtualClock {
    timers: Mutex<Timers>,
}

#[derive(Default)]
struct Timers {
    /// Milliseconds since [`START`].
    now: i64,
    sequence: u64,
    /// In order of time, then of setting: two runs with one seed are one run.
    queue: BinaryHeap<Reverse<(i64, u64)>>,
    /// Dropping a timer's future leaves its entry to pass unheard.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl VirtualClock {
    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i64 {
        START + self.timers().now
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (sender, receiver) = oneshot::channel();
        let mut timers = self.timers();
        timers.sequence += 1;
        let sequence = timers.sequence;
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let at = timers.now.saturating_add(millis);
        timers.queue.push(Reverse((at, sequence)));
        timers.waiting.insert(sequence, sender);
        receiver.map(|_| ()).boxed()
    }

    /// Moves to the next timer that somebody still waits for; false if there is none.
    fn advance(&self) -> bool {
        let mut timers = self.timers();
        while let Some(Reverse((at, sequence))) = timers.queue.pop() {
            let Some(sender) = timers.waiting.remove(&sequence) else { continue };
            if sender.is_canceled() {
                continue;
            }
            timers.now = timers.now.max(at);
            // Waking takes no lock of ours, but a woken future may set timers.
            drop(timers);
            let _ = sender.send(());
            return true;
        }
        false
    }

    /// Polls a future to its end, moving time whenever it cannot go on; `None` when time cannot move either.
    fn run<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            while woken.0.swap(false, Ordering::Relaxed) {
                if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                    return Some(value);
                }
            }
            if !self.advance() {
                return None;
            }
        }
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Closure = dyn FnMut(&Invocation<'_>) -> Answer + Send;

struct VirtualWorld {
    clock: Arc<VirtualClock>,
    task: Mutex<Box<Closure>>,
    random: Random,
    /// Kept open, so that a token that nobody answers waits for ever.
    tokens: Mutex<Vec<UnboundedSender<Callback>>>,
}

impl World for VirtualWorld {
    fn now(&self) -> i64 {
        self.clock.now()
    }

    fn wait(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }

    fn limit(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }

    fn submit(&self, call: TaskCall) -> BoxFuture<'static, Result<Submitted, Failure>> {
        let invocation = Invocation {
            state: &call.state,
            resource: &call.resource.arn,
            arguments: &call.arguments,
            retry_count: call.retry_count,
            elapsed: self.clock.now() - START,
            random: &self.random,
        };
        let answer = {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task(&invocation)
        };
        let pattern = call.resource.pattern;
        let sleep = self.clock.sleep(answer.after);
        async move {
            let result = async move {
                sleep.await;
                answer.result
            };
            match pattern {
                Pattern::Response | Pattern::Callback => result.await.map(Submitted::Done),
                Pattern::Sync | Pattern::Sync2 => {
                    Ok(Submitted::Running { output: Value::Object(Map::new()), result: result.boxed() })
                }
            }
        }
        .boxed()
    }

    fn callback(&self, _token: &str) -> UnboundedReceiver<Callback> {
        let (sender, receiver) = unbounded();
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }
}
