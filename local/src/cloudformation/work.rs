//! The work on a stack: resources made, changed and unmade in the order of their needs, and the way back when one
//! of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use slipway_states::clock::ScaledClock;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::change_sets::{self, differences};
use super::intrinsics::Made;
use super::resource::{self, Order};
use super::stack::{OnFailure, Stack, StackResource, Target, Wanted, told};
use super::update::Before;
use crate::gateway::call::{Aws, AwsError, Principal};

/// How long a change of a resource where it stands takes on AWS.
const CHANGE: Duration = Duration::from_secs(4);
/// How long AWS thinks about a change set.
const PLAN: Duration = Duration::from_secs(6);

/// The work on one stack: one piece at a time, each as a task of its own.
pub(super) struct Work {
    stack: Mutex<Stack>,
    /// With the rights of whoever asked for what is being done.
    aws: Mutex<Aws>,
    clock: ScaledClock,
    turn: tokio::sync::Mutex<()>,
}

/// A resource's failure: its own error, or the stack's loss of interest.
enum Failure {
    Own(String),
    Cancelled,
}

/// What a target means for a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It is as it should be.
    Keep,
    /// It was replaced, and is back.
    Restore,
    Create,
    Replace,
    Update,
}

impl Doing {
    fn statuses(self) -> [&'static str; 3] {
        match self {
            Self::Create => ["CREATE_IN_PROGRESS", "CREATE_COMPLETE", "CREATE_FAILED"],
            _ => ["UPDATE_IN_PROGRESS", "UPDATE_COMPLETE", "UPDATE_FAILED"],
        }
    }
}

/// What is begun with a resource: how it is wanted, and as it was where it is changed.
type Begun = (Doing, Wanted, Option<StackResource>);

/// The logical ids of what failed by itself.
#[derive(Debug, Default)]
struct Failed {
    to_create: Vec<String>,
    to_update: Vec<String>,
}

impl Failed {
    fn reason(&self) -> Option<String> {
        let part = |names: &[String], what: &str| {
            let listed = format!("The following resource(s) failed to {what}: [{}]. ", names.join(", "));
            if names.is_empty() { String::new() } else { listed }
        };
        let reason = part(&self.to_create, "create") + &part(&self.to_update, "update");
        (!reason.is_empty()).then(|| reason.trim_end().to_owned())
    }
}

impl Work {
    pub(super) fn new(stack: Stack, aws: Aws, clock: ScaledClock) -> Arc<Self> {
        Arc::new(Self { stack: Mutex::new(stack), aws: Mutex::new(aws), clock, turn: tokio::sync::Mutex::new(()) })
    }

    pub(super) fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what comes next done with another caller's rights.
    pub(super) fn act_as(&self, principal: Principal) {
        self.aws.lock().unwrap_or_else(PoisonError::into_inner).principal = principal;
    }

    fn aws(&self) -> Aws {
        self.aws.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the making of everything; whoever describes the stack sees it at once.
    pub(super) fn start_creation(self: &Arc<Self>) {
        self.stack().set_status("CREATE_IN_PROGRESS", Some("User Initiated".to_owned()));
        let work = self.clone();
        tokio::spawn(async move { work.create().await });
    }

    /// Starts an update, as a request or as a change set that is executed.
    pub(super) fn start_update(
        self: &Arc<Self>,
        target: Arc<Target>,
        token: Option<String>,
        change_set: Option<String>,
    ) {
        {
            let mut stack = self.stack();
            stack.previous = Some(std::mem::replace(&mut stack.target, target));
            stack.token = token;
            stack.updated = Some(OffsetDateTime::now_utc());
            stack.cancelled = CancellationToken::new();
            stack.set_status("UPDATE_IN_PROGRESS", Some("User Initiated".to_owned()));
        }
        let work = self.clone();
        tokio::spawn(async move {
            let done = work.update().await;
            let mut stack = work.stack();
            let executed = stack.change_sets.iter_mut().find(|set| Some(&set.id) == change_set.as_ref());
            if let Some(executed) = executed {
                executed.execution_status = if done { "EXECUTE_COMPLETE" } else { "EXECUTE_FAILED" };
            }
        });
    }

    /// Goes on with the way back of a failed update; what is skipped counts as being as it was.
    pub(super) fn start_rollback(self: &Arc<Self>, token: Option<String>, skipped: Vec<String>) {
        {
            let mut stack = self.stack();
            stack.token = token;
            let (target, made) = (stack.target.clone(), stack.made());
            for name in skipped {
                let wanted = stack.wanted(&target, &name, &made);
                if let (Ok(Some(wanted)), Some(resource)) = (wanted, stack.resources.get_mut(&name)) {
                    resource.last = wanted;
                    stack.set_resource(&name, "UPDATE_COMPLETE", Some("Resource update skipped".to_owned()));
                }
            }
            stack.set_status("UPDATE_ROLLBACK_IN_PROGRESS", Some("User Initiated".to_owned()));
        }
        let work = self.clone();
        tokio::spawn(async move {
            let _turn = work.turn.lock().await;
            work.roll_back().await;
        });
    }

    /// Starts a deletion.
    pub(super) fn start_deletion(self: &Arc<Self>, token: Option<String>, retained: Vec<String>) {
        {
            let mut stack = self.stack();
            stack.cancelled.cancel();
            stack.token = token;
            stack.set_status("DELETE_IN_PROGRESS", Some("User Initiated".to_owned()));
            for name in retained {
                stack.set_resource(&name, "DELETE_SKIPPED", None);
            }
        }
        let work = self.clone();
        tokio::spawn(async move {
            let _turn = work.turn.lock().await;
            work.delete_resources("DELETE_COMPLETE", "DELETE_FAILED").await;
        });
    }

    /// Starts the making of a change set: AWS thinks for a while.
    pub(super) fn start_planning(self: &Arc<Self>, change_set: String) {
        let work = self.clone();
        tokio::spawn(async move {
            work.clock.sleep(PLAN).await;
            let mut stack = work.stack();
            let Some(place) = stack.change_sets.iter().position(|set| set.id == change_set) else { return };
            let target = stack.change_sets[place].target.clone();
            let planned = change_sets::changes(&stack, &target);
            let empty = planned.as_ref().is_ok_and(|changes| change_sets::changes_nothing(&stack, &target, changes));
            let set = &mut stack.change_sets[place];
            let no_changes = "The submitted information didn't contain changes. Submit different information to create \
                              a change set.";
            match planned {
                Ok(_) if empty => (set.status, set.reason) = ("FAILED", Some(no_changes.to_owned())),
                Ok(changes) => {
                    set.changes = changes;
                    (set.status, set.execution_status) = ("CREATE_COMPLETE", "AVAILABLE");
                }
                Err(error) => (set.status, set.reason) = ("FAILED", Some(error.message)),
            }
        });
    }

    async fn create(&self) {
        let _turn = self.turn.lock().await;
        let failed = self.converge(false).await;
        let on_failure = {
            let stack = self.stack();
            if stack.status == "DELETE_IN_PROGRESS" {
                return;
            }
            stack.on_failure
        };
        let reason = failed.reason().or_else(|| self.stack().evaluate_outputs().err().map(|error| error.message));
        match (reason, on_failure) {
            (None, _) => self.stack().set_status("CREATE_COMPLETE", None),
            (Some(reason), OnFailure::DoNothing) => self.stack().set_status("CREATE_FAILED", Some(reason)),
            (Some(reason), OnFailure::Rollback) => {
                let reason = format!("{reason} Rollback requested by user.");
                self.stack().set_status("ROLLBACK_IN_PROGRESS", Some(reason));
                self.delete_resources("ROLLBACK_COMPLETE", "ROLLBACK_FAILED").await;
            }
            (Some(reason), OnFailure::Delete) => {
                let reason = format!("{reason} Delete requested by user.");
                self.stack().set_status("DELETE_IN_PROGRESS", Some(reason));
                self.delete_resources("DELETE_COMPLETE", "DELETE_FAILED").await;
            }
        }
    }

    /// Whether the update is done; if not, the stack is on its way back or there.
    async fn update(&self) -> bool {
        let _turn = self.turn.lock().await;
        let failed = self.converge(false).await;
        let reason = failed.reason().or_else(|| self.stack().evaluate_outputs().err().map(|error| error.message));
        let Some(reason) = reason else {
            self.stack().set_status("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", None);
            self.clean_up().await;
            let mut stack = self.stack();
            stack.previous = None;
            stack.set_status("UPDATE_COMPLETE", None);
            return true;
        };
        {
            let mut stack = self.stack();
            if let Some(previous) = stack.previous.take() {
                stack.target = previous;
            }
            stack.set_status("UPDATE_ROLLBACK_IN_PROGRESS", Some(reason));
        }
        self.roll_back().await;
        false
    }

    async fn roll_back(&self) {
        self.stack().cancelled = CancellationToken::new();
        let failed = self.converge(true).await;
        let reason = failed.reason().or_else(|| self.stack().evaluate_outputs().err().map(|error| error.message));
        if reason.is_some() {
            self.stack().set_status("UPDATE_ROLLBACK_FAILED", reason);
            return;
        }
        self.stack().set_status("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", None);
        self.clean_up().await;
        self.stack().set_status("UPDATE_ROLLBACK_COMPLETE", None);
    }

    /// Brings every resource to the target, each as soon as what it needs is so.
    async fn converge(&self, rolling_back: bool) -> Failed {
        let (cancelled, active, mut open) = {
            let stack = self.stack();
            let active = stack.target.active().unwrap_or_default();
            let needs = |name: &String| {
                let resource = stack.target.template.resources.get(name)?;
                let needs = stack.target.template.dependencies(resource).into_iter();
                Some((name.clone(), needs.filter(|need| active.contains(need)).collect::<BTreeSet<String>>()))
            };
            let open: BTreeMap<String, BTreeSet<String>> = active.iter().filter_map(needs).collect();
            (stack.cancelled.clone(), active, open)
        };
        let mut running = FuturesUnordered::new();
        let mut failed = Failed::default();
        loop {
            if !cancelled.is_cancelled() {
                let ready: Vec<String> =
                    open.iter().filter(|(_, needs)| needs.is_empty()).map(|(name, _)| name.clone()).collect();
                for name in ready {
                    open.remove(&name);
                    running.push(self.bring(name, rolling_back, &active, &cancelled));
                }
            }
            let Some((name, doing, result)) = running.next().await else { break };
            let [_, complete, incomplete] = doing.statuses();
            match result {
                Ok(()) => {
                    if doing != Doing::Keep {
                        self.stack().set_resource(&name, complete, None);
                    }
                    for needs in open.values_mut() {
                        needs.remove(&name);
                    }
                }
                Err(Failure::Cancelled) => {
                    let what = if doing == Doing::Create { "creation" } else { "update" };
                    self.stack().set_resource(&name, incomplete, Some(format!("Resource {what} cancelled")));
                }
                Err(Failure::Own(reason)) => {
                    self.stack().set_resource(&name, incomplete, Some(reason));
                    let list = if doing == Doing::Create { &mut failed.to_create } else { &mut failed.to_update };
                    list.push(name);
                    cancelled.cancel();
                }
            }
        }
        failed
    }

    async fn bring(
        &self,
        name: String,
        rolling_back: bool,
        active: &BTreeSet<String>,
        cancelled: &CancellationToken,
    ) -> (String, Doing, Result<(), Failure>) {
        match self.begin(&name, rolling_back, active) {
            Ok(None) => (name, Doing::Keep, Ok(())),
            Ok(Some((doing, wanted, before))) => {
                let result = self.carry_out(&name, doing, &wanted, before.as_ref(), cancelled).await;
                let mut stack = self.stack();
                // A way back that is gone again must find the difference that is still there.
                if let (true, Err(_), Some(before), Some(resource)) =
                    (rolling_back, &result, before, stack.resources.get_mut(&name))
                {
                    resource.last = before.last;
                }
                (name, doing, result)
            }
            Err((doing, error)) => (name, doing, Err(Failure::Own(error.message))),
        }
    }

    /// Decides what is to be done with a resource, and says so in its status; none where it may stay as it is.
    fn begin(
        &self,
        name: &str,
        rolling_back: bool,
        active: &BTreeSet<String>,
    ) -> Result<Option<Begun>, (Doing, AwsError)> {
        let mut stack = self.stack();
        let target = stack.target.clone();
        let there = stack.resources.get(name).filter(|resource| resource.is_there()).cloned();
        let otherwise = if there.is_some() { Doing::Update } else { Doing::Create };
        let wanted = stack.wanted(&target, name, &stack.made()).map_err(|error| (otherwise, error))?;
        let Some(mut wanted) = wanted else { return Ok(None) };
        wanted.needs.retain(|need| active.contains(need));
        if rolling_back && let Some(old) = stack.superseded.remove(name) {
            if let Some(new) = stack.resources.insert(name.to_owned(), old) {
                stack.leftovers.insert(name.to_owned(), new);
            }
            stack.set_resource(name, "UPDATE_IN_PROGRESS", None);
            return Ok(Some((Doing::Restore, wanted, None)));
        }
        let Some(there) = there else {
            stack.resources.insert(name.to_owned(), StackResource::new(wanted.clone()));
            stack.set_resource(name, "CREATE_IN_PROGRESS", None);
            return Ok(Some((Doing::Create, wanted, None)));
        };
        let details = differences(&there, &wanted);
        if details.is_empty() {
            return Ok(None);
        }
        let replaces = details.iter().any(|detail| detail.recreates);
        stack.set_resource(
            name,
            "UPDATE_IN_PROGRESS",
            replaces.then(|| {
                "Requested update requires the creation of a new physical resource; hence creating one.".to_owned()
            }),
        );
        if replaces {
            stack.resources.insert(name.to_owned(), StackResource::new(wanted.clone()));
            stack.superseded.insert(name.to_owned(), there);
            return Ok(Some((Doing::Replace, wanted, None)));
        }
        // What fails half way is no longer as it was: the way back must see a difference.
        if let Some(resource) = stack.resources.get_mut(name) {
            resource.last = wanted.clone();
        }
        Ok(Some((Doing::Update, wanted, Some(there))))
    }

    async fn carry_out(
        &self,
        name: &str,
        doing: Doing,
        wanted: &Wanted,
        before: Option<&StackResource>,
        cancelled: &CancellationToken,
    ) -> Result<(), Failure> {
        if doing == Doing::Restore {
            return Ok(());
        }
        let (stack_name, attributes_read) = {
            let stack = self.stack();
            (stack.name.clone(), stack.target.template.attributes_read(name))
        };
        let aws = self.aws();
        let order = Order {
            aws: &aws,
            kind: wanted.kind,
            stack_name: &stack_name,
            logical_id: name,
            properties: &wanted.properties,
            tags: &wanted.tags,
            attributes_read: &attributes_read,
        };
        let mut made = before.map_or_else(Made::default, |before| before.made.clone());
        let (result, takes) = match before {
            None => (order.create(&mut made).await, wanted.kind.takes()),
            Some(before) => {
                let before = Before { properties: &before.last.properties, tags: &before.last.tags };
                (order.update(&before, &mut made).await, CHANGE)
            }
        };
        {
            let mut stack = self.stack();
            if let Some(resource) = stack.resources.get_mut(name) {
                resource.made = made;
            }
            if result.is_ok() && before.is_none() {
                let [in_progress, ..] = doing.statuses();
                stack.set_resource(name, in_progress, Some("Resource creation Initiated".to_owned()));
            }
        }
        result.map_err(|error| Failure::Own(told(wanted.kind, &error)))?;
        tokio::select! {
            () = self.clock.sleep(takes) => Ok(()),
            () = cancelled.cancelled() => Err(Failure::Cancelled),
        }
    }

    /// Deletes what an update left over. What can't be deleted stays behind, with an event: AWS gives up on it too.
    async fn clean_up(&self) {
        let leftovers = {
            let mut stack = self.stack();
            let active = stack.target.active().unwrap_or_default();
            let mut leftovers = std::mem::take(&mut stack.leftovers);
            let superseded = std::mem::take(&mut stack.superseded);
            leftovers.extend(superseded.into_iter().filter(|(_, resource)| !resource.last.kept_when_replaced));
            let gone: Vec<String> = stack.resources.keys().filter(|name| !active.contains(*name)).cloned().collect();
            for name in gone {
                let Some(resource) = stack.resources.remove(&name) else { continue };
                if resource.last.kept_when_deleted && stack.status.starts_with("UPDATE_COMPLETE") {
                    stack.tell(&name, &resource, "DELETE_SKIPPED", None);
                } else {
                    leftovers.insert(name, resource);
                }
            }
            leftovers.retain(|_, resource| resource.is_there());
            leftovers
        };
        self.unmake(leftovers).await;
    }

    /// Unmakes every resource that is there.
    async fn delete_resources(&self, complete: &'static str, incomplete: &'static str) {
        let there: BTreeMap<String, StackResource> = {
            let mut stack = self.stack();
            let deleting = stack.status == "DELETE_IN_PROGRESS";
            let kept: Vec<String> = stack
                .resources
                .iter()
                .filter(|(_, resource)| resource.is_there() && deleting && resource.last.kept_when_deleted)
                .map(|(name, _)| name.clone())
                .collect();
            for name in kept {
                stack.set_resource(&name, "DELETE_SKIPPED", None);
            }
            let there = stack.resources.iter().filter(|(_, resource)| resource.is_there());
            there.map(|(name, resource)| (name.clone(), resource.clone())).collect()
        };
        let failed = self.unmake(there).await;
        let mut stack = self.stack();
        if failed.is_empty() {
            stack.outputs.clear();
            stack.set_status(complete, None);
        } else {
            let reason = format!("The following resource(s) failed to delete: [{}]. ", failed.join(", "));
            stack.set_status(incomplete, Some(reason.trim_end().to_owned()));
        }
    }

    /// Unmakes resources, each as soon as no other of them needs it any more. The logical ids of what stays.
    async fn unmake(&self, mut open: BTreeMap<String, StackResource>) -> Vec<String> {
        let mut running = FuturesUnordered::new();
        let mut in_work: BTreeMap<String, StackResource> = BTreeMap::new();
        let mut failed: BTreeMap<String, StackResource> = BTreeMap::new();
        loop {
            let needed: BTreeSet<String> = open
                .values()
                .chain(in_work.values())
                .chain(failed.values())
                .flat_map(|resource| resource.last.needs.iter().cloned())
                .collect();
            let ready: Vec<String> = open.keys().filter(|name| !needed.contains(*name)).cloned().collect();
            for name in ready {
                let Some(resource) = open.remove(&name) else { continue };
                in_work.insert(name.clone(), resource.clone());
                running.push(self.unmake_one(name, resource));
            }
            let Some((name, result)) = running.next().await else { break };
            let Some(resource) = in_work.remove(&name) else { continue };
            match result {
                Ok(()) => self.told_of(&name, &resource, "DELETE_COMPLETE", None),
                Err(error) => {
                    let reason = told(resource.last.kind, &error);
                    self.told_of(&name, &resource, "DELETE_FAILED", Some(reason));
                    failed.insert(name, resource);
                }
            }
        }
        failed.into_keys().collect()
    }

    async fn unmake_one(&self, name: String, resource: StackResource) -> (String, Result<(), AwsError>) {
        let kind = resource.last.kind;
        self.told_of(&name, &resource, "DELETE_IN_PROGRESS", None);
        let result = resource::delete(&self.aws(), kind, &resource.made, &resource.last.properties).await;
        if result.is_ok() {
            self.clock.sleep(kind.takes_to_delete()).await;
        }
        (name, result)
    }

    /// The status of a resource that may be the stack's or a leftover of it.
    fn told_of(&self, name: &str, resource: &StackResource, status: &'static str, reason: Option<String>) {
        let mut stack = self.stack();
        let own = |own: &StackResource| own.made.physical_id == resource.made.physical_id;
        if stack.resources.get(name).is_some_and(own) {
            stack.set_resource(name, status, reason);
        } else {
            stack.tell(name, resource, status, reason);
        }
    }
}
