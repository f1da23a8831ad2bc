//! probe-identity: asks STS, as the controller will, until it believes the controller's service account.
//!
//! A controller that starts before that exits, and its back-off costs minutes. STS answers per host, so one yes is no
//! proof: it must be three over five seconds, each on connections of its own. What no waiting cures is told at once.

use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_karpenter::diagnosis::redact;
use slipway_karpenter::identity::Flaw;
use slipway_karpenter::policy::{AUDIENCE, SERVICE_ACCOUNT};
use slipway_karpenter::render::RELEASE_LABEL;
use slipway_karpenter::values::{RELEASE, ROLE_ANNOTATION};
use slipway_statemachine::spec::Identity;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, Done, ErrorName, Run, Step, StepError, Waiting};

use crate::{
    Context,
    aws::error::{code, refused},
    cluster::{self, Cluster, token},
    identity::{self, Subject},
};

/// Asks STS.
#[derive(Debug)]
pub struct ProbeIdentity;

/// Which identity, where its service account lives, and what STS said so far.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that asks.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How the controller proves who it is.
    pub identity: Identity,
    /// Karpenter's namespace.
    pub namespace: String,
    /// The cluster's issuer URL.
    pub issuer: String,
    /// The role that the service account is to get.
    pub controller_role_arn: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Seconds that the machine has waited for a yes so far.
    #[serde(default)]
    pub waited: u32,
    /// What the last answer said.
    #[serde(default)]
    pub confirmed: Confirmed,
}

/// How often STS said yes without a no between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Confirmed {
    /// Each on connections of its own, all of which have to say so, since STS answers per host.
    pub times: u32,
    /// Seconds from the first yes to the moment when the step is asked next.
    pub over_seconds: u32,
}

/// Either not sure yet, or the proof.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Output {
    /// The machine waits and asks again, with what was confirmed.
    Asking(Asking),
    /// As sure as one can be.
    Proven(Done<Proof>),
}

/// Not sure yet.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Asking {
    /// What is waited for.
    #[serde(flatten)]
    pub waiting: Waiting,
    /// What to hand to the next asking.
    pub confirmed: Confirmed,
}

/// What was proven, and what could not be.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// How often STS was asked and every connection said yes; 0 with Pod Identity, where nobody outside of a node can ask.
    pub confirmations: u32,
    /// Seconds from the first yes to the last.
    pub over_seconds: u32,
    /// Seconds that the machine has waited in all.
    pub waited_seconds: u32,
    /// What nobody but a pod can find out.
    pub unchecked: Vec<String>,
}

impl Step for ProbeIdentity {
    const NAME: &'static str = "probe-identity";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::OidcProviderMissing,
        ErrorName::IdentityRefused,
        ErrorName::IdentityNotInjected,
        ErrorName::IdentityNotBelieved,
    ];
    type Input = Input;
    type Output = Output;
}

/// As many times in a row as make another refusal unlikely.
const CONFIRMATIONS: u32 = 3;

/// On how many connections STS is asked each time, side by side: every one may reach another host, and costs no time.
const CONNECTIONS: usize = 3;

/// The least time that they span, in seconds: as long as published propagation delays jump between hosts of STS.
const SPAN: u32 = 5;

/// Seconds until AWS must believe what it is asked to: five times the longest delay that was published.
const LIMIT: u32 = 300;

/// The namespace and the service account to make, as Helm would, so that Helm can adopt them; neither if it is there
/// and right already: install-karpenter owns more of its fields.
fn manifests(input: &Input, namespace: Option<&Value>, account: Option<&Value>) -> Vec<Value> {
    let annotations = json!({
        "meta.helm.sh/release-name": RELEASE,
        "meta.helm.sh/release-namespace": input.namespace,
    });
    let labels = json!({ "app.kubernetes.io/managed-by": "Helm", RELEASE_LABEL: RELEASE });
    let mut wanted = Vec::new();
    if namespace.is_none() {
        wanted.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": input.namespace } }));
    }
    let role = (input.identity == Identity::Irsa).then_some(input.controller_role_arn.as_str());
    let said = account.and_then(|account| account["metadata"]["annotations"][ROLE_ANNOTATION].as_str());
    if account.is_none() || said != role {
        let mut account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": SERVICE_ACCOUNT,
                "namespace": input.namespace,
                "labels": labels,
                "annotations": annotations,
            },
            "automountServiceAccountToken": false,
        });
        if let Some(role) = role {
            account["metadata"]["annotations"][ROLE_ANNOTATION] = json!(role);
        }
        wanted.push(account);
    }
    wanted
}

/// What STS said this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    /// It does not believe the identity; its words.
    No(String),
}

/// What an answer comes to, with those before it.
pub(crate) fn decide(input: &Input, answer: &Answer) -> Result<Output, StepError> {
    match answer {
        Answer::Yes => {
            let times = input.confirmed.times + 1;
            let over_seconds = if times == 1 { 0 } else { input.confirmed.over_seconds };
            if times >= CONFIRMATIONS && over_seconds >= SPAN {
                return Ok(Output::Proven(Done {
                    done: true,
                    output: Proof {
                        confirmations: times,
                        over_seconds,
                        waited_seconds: input.waited,
                        unchecked: Vec::new(),
                    },
                }));
            }
            // What is left of the span, in as many parts as there are answers left.
            let left = CONFIRMATIONS.saturating_sub(times).max(1);
            let wait = (SPAN.saturating_sub(over_seconds) / left).max(1);
            let detail = format!("STS said yes {times} of {CONFIRMATIONS} times");
            Ok(asking(wait, detail, Confirmed { times, over_seconds: over_seconds + wait }))
        }
        Answer::No(words) => {
            let so_far = input.confirmed.times;
            patience(input, &format!("STS said yes {so_far} of {CONFIRMATIONS} times, then: {words}"))
        }
    }
}

/// Asks again, from the start, after a time that grows with what it has taken already; up to the limit.
fn patience(input: &Input, detail: &str) -> Result<Output, StepError> {
    if input.waited >= LIMIT {
        let cause = format!(
            "After {} seconds AWS does not believe the controller's identity, though all is as it should \
             be. Last: {detail}",
            input.waited
        );
        return Err(StepError::new(ErrorName::IdentityNotBelieved, cause));
    }
    // Trust is believed after 2 s to a minute; what has taken long takes a while more.
    let wait = (input.waited / 4).clamp(2, 15);
    Ok(asking(wait, detail.to_owned(), Confirmed::default()))
}

fn asking(seconds: u32, detail: String, confirmed: Confirmed) -> Output {
    Output::Asking(Asking { waiting: Waiting { done: false, retry_after_seconds: seconds, detail }, confirmed })
}

/// Whether a refusal of STS stays one whatever IAM says; the others may pass once STS has heard of role, trust and
/// provider.
fn for_good(code: Option<&str>) -> bool {
    !matches!(code, None | Some("AccessDenied" | "InvalidIdentityToken" | "IDPCommunicationError"))
}

/// A flaw that no waiting cures, as an error. The association that overrules an annotation goes once this proof is made.
fn hopeless(flaw: Option<Flaw>) -> Result<(), StepError> {
    match flaw {
        None | Some(Flaw::Overruled { .. }) => Ok(()),
        Some(flaw) => Err(StepError::new(flaw.name(), flaw.sentence())),
    }
}

/// Makes the service account, then asks once.
///
/// # Errors
/// `OidcProviderMissing`, `IdentityRefused` and `IdentityNotInjected` where no waiting helps, `IdentityNotBelieved` once
/// it has taken too long; `ClusterUnreachable` and `KubernetesRefused` from the API server. The token is in none of them.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let kubernetes = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let namespace = kubernetes.get(("v1", "Namespace"), "", &input.namespace).await?;
    let account = kubernetes.get(("v1", "ServiceAccount"), &input.namespace, SERVICE_ACCOUNT).await?;
    let wanted = manifests(&input, namespace.as_ref(), account.as_ref());
    if !wanted.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for manifest in &wanted {
        kubernetes.apply(manifest).await?;
    }
    match input.identity {
        Identity::PodIdentity => ask_eks(cx, &kubernetes, &input).await,
        Identity::Irsa => {
            let answer = ask_sts(&kubernetes, &input).await?;
            // What can never work is told at the start, and whenever STS refuses.
            if matches!(answer, Answer::No(_)) || input.waited == 0 {
                hopeless(flaw(cx, &kubernetes, &input).await?)?;
            }
            decide(&input, &answer)
        }
    }
}

async fn flaw(cx: &Context, kubernetes: &Cluster, input: &Input) -> Result<Option<Flaw>, StepError> {
    let subject = Subject {
        cluster: &input.cluster,
        identity: input.identity,
        namespace: &input.namespace,
        account: SERVICE_ACCOUNT,
        issuer: &input.issuer,
        role_arn: &input.controller_role_arn,
    };
    Ok(identity::decide(&subject, &identity::observe(cx, kubernetes, &subject).await?))
}

async fn ask_sts(kubernetes: &Cluster, input: &Input) -> Result<Answer, StepError> {
    let token = kubernetes.service_account_token(&input.namespace, SERVICE_ACCOUNT, AUDIENCE).await?;
    // A client of its own is a connection of its own.
    let hosts: Vec<_> = (0..CONNECTIONS).map(|_| token::anonymous_sts(&input.cluster.region)).collect();
    let answers = try_join_all(hosts.iter().map(|host| believes(host, &input.controller_role_arn, &token))).await?;
    Ok(together(answers))
}

/// Yes if every host says so; else the words of one that does not.
fn together(answers: impl IntoIterator<Item = Answer>) -> Answer {
    answers.into_iter().find(|answer| *answer != Answer::Yes).unwrap_or(Answer::Yes)
}

/// Asks STS once. Whatever comes back, the token is not in what is answered.
async fn believes(sts: &aws_sdk_sts::Client, role_arn: &str, token: &str) -> Result<Answer, StepError> {
    const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
    let answer = sts
        .assume_role_with_web_identity()
        .role_arn(role_arn)
        .role_session_name("slipway-probe")
        .web_identity_token(token)
        .duration_seconds(900)
        .send()
        .await;
    let Err(error) = answer else { return Ok(Answer::Yes) };
    let failure = refused(ACTION, &error);
    // STS does not repeat a token, but whatever stands before it might.
    let words = redact(&failure.cause).replace(token, "[redacted]");
    match failure.name {
        ErrorName::AwsUnavailable | ErrorName::Throttled => Err(StepError::new(failure.name, words)),
        _ if for_good(code(&error)) => Err(StepError::new(ErrorName::IdentityRefused, words)),
        _ => Ok(Answer::No(words)),
    }
}

/// The Pod Identity agent answers only on its node, so what is asked is what it depends on.
async fn ask_eks(cx: &Context, kubernetes: &Cluster, input: &Input) -> Result<Output, StepError> {
    hopeless(flaw(cx, kubernetes, input).await?)?;
    let agent = kubernetes.get(("apps/v1", "DaemonSet"), "kube-system", AGENT).await?;
    match agent_state(agent.as_ref()) {
        Agent::Waiting(detail) => patience(input, &detail),
        Agent::Ready(unchecked) => Ok(Output::Proven(Done {
            done: true,
            output: Proof { confirmations: 0, over_seconds: 0, waited_seconds: input.waited, unchecked },
        })),
    }
}

/// The add-on's DaemonSet, which runs the agent on every node.
const AGENT: &str = "eks-pod-identity-agent";

/// How far the agent is.
#[derive(Debug, PartialEq, Eq)]
enum Agent {
    Waiting(String),
    /// With what could not be checked.
    Ready(Vec<String>),
}

fn agent_state(daemons: Option<&Value>) -> Agent {
    const ONLY_PODS: &str = "whether the agent knows the association yet: it answers only pods on its own node";
    let Some(daemons) = daemons else { return Agent::Waiting(format!("the DaemonSet {AGENT} is not there yet")) };
    let number = |field: &str| daemons["status"][field].as_u64().unwrap_or_default();
    let (wanted, ready) = (number("desiredNumberScheduled"), number("numberReady"));
    if wanted == 0 {
        // Nodes are made beside this; to wait for them here would make the run longer.
        let no_nodes = format!("whether {AGENT} runs: there are no nodes yet");
        return Agent::Ready(vec![no_nodes, ONLY_PODS.to_owned()]);
    }
    if ready < wanted {
        return Agent::Waiting(format!("{AGENT} is ready on {ready} of {wanted} nodes"));
    }
    Agent::Ready(vec![ONLY_PODS.to_owned()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn input(identity: &str) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "identity": identity,
            "namespace": "karpenter",
            "issuer": "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC",
            "controllerRoleArn": "arn:aws:iam::111122223333:role/controller",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
        }))
        .unwrap()
    }

    #[test]
    fn a_new_cluster_gets_the_namespace_first_and_an_account_that_helm_can_adopt() {
        let wanted = manifests(&input("irsa"), None, None);
        assert_eq!(
            wanted.iter().map(|one| one["kind"].as_str().unwrap()).collect::<Vec<_>>(),
            ["Namespace", "ServiceAccount"]
        );
        let metadata = &wanted[1]["metadata"];
        assert_eq!((&metadata["namespace"], &metadata["name"]), (&json!("karpenter"), &json!("karpenter")));
        assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "Helm");
        assert_eq!(metadata["annotations"]["meta.helm.sh/release-name"], "karpenter");
        assert_eq!(metadata["annotations"][ROLE_ANNOTATION], "arn:aws:iam::111122223333:role/controller");
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let account = json!({ "metadata": { "annotations": {
            ROLE_ANNOTATION: "arn:aws:iam::111122223333:role/controller", "more": "of the chart",
        } } });
        assert!(manifests(&input("irsa"), Some(&json!({})), Some(&account)).is_empty());
        let other = json!({ "metadata": { "annotations": { ROLE_ANNOTATION: "arn:other" } } });
        assert_eq!(manifests(&input("irsa"), Some(&json!({})), Some(&other)).len(), 1);
    }

    #[test]
    fn pod_identity_names_no_role() {
        let wanted = manifests(&input("podIdentity"), Some(&json!({})), None);
        assert!(wanted[0]["metadata"]["annotations"].get(ROLE_ANNOTATION).is_none());
        assert!(manifests(&input("podIdentity"), Some(&json!({})), Some(&wanted[0])).is_empty());
    }

    /// Plays the machine: what STS says each time, to the last answer and the seconds that it took.
    fn play(answers: impl IntoIterator<Item = bool>) -> (Result<Output, StepError>, u32) {
        let mut input = input("irsa");
        for yes in answers {
            let answer = if yes { Answer::Yes } else { Answer::No("AccessDenied".to_owned()) };
            match decide(&input, &answer) {
                Ok(Output::Asking(Asking { waiting, confirmed })) => {
                    input.waited += waiting.retry_after_seconds;
                    input.confirmed = confirmed;
                }
                end => return (end, input.waited),
            }
        }
        panic!("no end after {} s", input.waited);
    }

    #[test]
    fn three_yeses_over_five_seconds_are_a_proof_that_costs_no_more() {
        let (end, waited) = play([true, true, true]);
        let Ok(Output::Proven(Done { output: proof, .. })) = end else { panic!("{end:?}") };
        assert_eq!((proof.confirmations, proof.over_seconds, waited), (3, 5, 5));
        assert!(proof.unchecked.is_empty());
    }

    #[test]
    fn one_host_that_does_not_believe_is_a_no() {
        let no = || Answer::No("AccessDenied".to_owned());
        assert_eq!(together([Answer::Yes, Answer::Yes, Answer::Yes]), Answer::Yes);
        assert_eq!(together([Answer::Yes, no(), Answer::Yes]), no());
    }

    #[test]
    fn a_no_starts_the_count_again() {
        let (end, waited) = play([true, true, false, true, false, true, true, true]);
        let Ok(Output::Proven(Done { output: proof, .. })) = end else { panic!("{end:?}") };
        assert_eq!((proof.confirmations, proof.over_seconds, proof.waited_seconds), (3, 5, waited));
        assert!(waited > 12, "{waited}");
    }

    #[test]
    fn a_refusal_that_lasts_is_asked_about_more_and_more_seldom_and_ends_under_its_name() {
        let (end, waited) = play(std::iter::repeat(false));
        let error = end.unwrap_err();
        assert_eq!(error.name, ErrorName::IdentityNotBelieved);
        assert!(error.cause.contains("AccessDenied"), "{}", error.cause);
        assert!((LIMIT..LIMIT + 15).contains(&waited), "{waited}");
        let first = decide(&input("irsa"), &Answer::No(String::new())).unwrap();
        assert!(matches!(first, Output::Asking(Asking { waiting, .. }) if waiting.retry_after_seconds == 2));
    }

    #[test]
    fn only_refusals_that_pass_are_waited_for() {
        assert!(!for_good(Some("AccessDenied")));
        assert!(!for_good(Some("InvalidIdentityToken")));
        assert!(for_good(Some("ExpiredTokenException")));
        assert!(for_good(Some("ValidationError")));
    }

    #[test]
    fn a_flaw_ends_the_probe_at_once_except_one_that_goes_by_itself() {
        let error = hopeless(Some(Flaw::NotAnnotated { found: None })).unwrap_err();
        assert_eq!(error.name, ErrorName::IdentityNotInjected);
        assert!(hopeless(Some(Flaw::Overruled { found: "arn:old".into() })).is_ok());
        assert!(hopeless(None).is_ok());
    }

    #[test]
    fn the_agent_is_waited_for_where_there_are_nodes() {
        let daemons = |wanted: u64, ready: u64| {
            agent_state(Some(&json!({ "status": { "desiredNumberScheduled": wanted, "numberReady": ready } })))
        };
        assert!(matches!(agent_state(None), Agent::Waiting(_)));
        assert_eq!(daemons(2, 1), Agent::Waiting("eks-pod-identity-agent is ready on 1 of 2 nodes".to_owned()));
        assert!(matches!(daemons(2, 2), Agent::Ready(unchecked) if unchecked.len() == 1));
        assert!(matches!(daemons(0, 0), Agent::Ready(unchecked) if unchecked[0].contains("no nodes yet")));
    }

    #[test]
    fn the_answer_is_what_the_machine_reads() {
        let asking = serde_json::to_value(decide(&input("irsa"), &Answer::Yes).unwrap()).unwrap();
        assert_eq!((&asking["done"], &asking["retryAfterSeconds"]), (&json!(false), &json!(2)));
        assert_eq!(asking["confirmed"], json!({ "times": 1, "overSeconds": 2 }));
    }

    /// An STS, or a proxy before it, that repeats whatever it was sent.
    #[tokio::test]
    async fn the_token_is_in_nothing_that_leaves_the_step() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJrYXJwZW50ZXIifQ.c2lnbmF0dXJl";
        for (status, kind) in
            [("403 Forbidden", "AccessDenied"), ("400 Bad Request", "ValidationError"), ("503 No", "X")]
        {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut heard = vec![0; 16_384];
                let mut length = 0;
                while !String::from_utf8_lossy(&heard[..length]).contains("c2lnbmF0dXJl") {
                    length += stream.read(&mut heard[length..]).await.unwrap();
                }
                let body = format!(
                    "<ErrorResponse><Error><Code>{kind}</Code><Message>I got {TOKEN} in {}</Message></Error></ErrorResponse>",
                    String::from_utf8_lossy(&heard[..length]).replace(['<', '&'], " ")
                );
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let sts = token::anonymous(&endpoint, "eu-west-1");
            let said = match believes(&sts, "arn:aws:iam::111122223333:role/controller", TOKEN).await {
                Ok(answer) => format!("{answer:?} {:?}", decide(&input("irsa"), &answer)),
                Err(error) => format!("{error:?} {error}"),
            };
            assert!(said.contains("[redacted]") || kind == "X", "{said}");
            assert!(!said.contains("eyJ") && !said.contains("c2lnbmF0dXJl"), "{said}");
        }
    }
}
