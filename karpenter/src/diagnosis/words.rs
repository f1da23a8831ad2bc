//! What a controller's log says about its failure: JSON and console lines, panics, both generations of the AWS SDK.

use serde_json::Value;

/// The most of a log that is read, from its end, in bytes.
pub(super) const TAIL_BYTES: usize = 64 * 1024;

/// The longest line that is shown, in characters.
const LINE: usize = 700;

/// What a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub symptom: Symptom,
    /// The line that says so.
    pub line: String,
}

/// What fails, in the controller's own words; whether it passes is not said there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Symptom {
    /// STS, or the Pod Identity agent, does not give credentials.
    Refused,
    /// STS knows no OIDC provider of the token's issuer.
    NoProvider,
    /// The controller found nothing to prove itself with.
    NoCredentials,
    /// Whoever gives credentials was not reached.
    Unreachable,
    /// AWS denied an action, `ec2:DescribeInstanceTypes`.
    Denied(String),
    QueueMissing,
    ZonalShift,
    ClusterEndpoint,
    CrdMissing,
    LeaderElection,
}

/// The end of a log, on a character's and if possible a line's border.
pub(super) fn tail(log: &str) -> &str {
    if log.len() <= TAIL_BYTES {
        return log;
    }
    let mut from = log.len() - TAIL_BYTES;
    while !log.is_char_boundary(from) {
        from += 1;
    }
    let tail = &log[from..];
    tail.find('\n').map_or(tail, |end| &tail[end + 1..])
}

/// The latest complaint in a log that has a meaning here.
pub(super) fn read(log: &str) -> Option<Said> {
    let mut complaints = tail(log).lines().rev().filter_map(complaint);
    complaints.find_map(|line| symptom(&line).map(|symptom| Said { symptom, line: shorten(&line) }))
}

/// The last lines that complain, or the very last ones if none does, oldest first.
pub(super) fn last_lines(log: &str, count: usize) -> Vec<String> {
    let log = tail(log);
    let mut lines: Vec<_> = log.lines().rev().filter_map(complaint).take(count).collect();
    if lines.is_empty() {
        lines = log.lines().rev().filter(|line| !line.trim().is_empty()).take(count).map(plain).collect();
    }
    lines.reverse();
    lines.iter().map(|line| shorten(line)).collect()
}

/// A line in which the controller complains: message and error of a JSON line, or a console line as it is.
fn complaint(line: &str) -> Option<String> {
    const LEVELS: [&str; 5] = ["ERROR", "FATAL", "PANIC", "DPANIC", "CRITICAL"];
    let line = line.trim();
    if let Ok(Value::Object(fields)) = serde_json::from_str(line) {
        let level = ["level", "severity", "lvl"].iter().find_map(|key| fields.get(*key)?.as_str()).unwrap_or_default();
        return LEVELS.contains(&level.to_uppercase().as_str()).then(|| plain(line));
    }
    let word = |word: &str| LEVELS.contains(&word.trim_matches(|c: char| !c.is_ascii_alphabetic()));
    let klog = line.starts_with(['E', 'F']) && line[1..].chars().take(4).filter(char::is_ascii_digit).count() == 4;
    let console = line.split_whitespace().take(4).any(word);
    let panic = line.starts_with("panic:") || line.contains("Observed a panic");
    (klog || console || panic).then(|| line.to_owned())
}

/// A line for reading: of a JSON line its message and its error.
fn plain(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return line.trim().to_owned() };
    let field = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_str()).unwrap_or_default();
    let (message, error) = (field(&["message", "msg"]), field(&["error", "err"]));
    match (message.is_empty(), error.is_empty()) {
        (true, true) => line.trim().to_owned(),
        (false, false) => format!("{message}: {error}"),
        _ => format!("{message}{error}"),
    }
}

fn shorten(line: &str) -> String {
    let clean = super::redaction::redact(line);
    if clean.chars().count() <= LINE { clean } else { clean.chars().take(LINE).chain("…".chars()).collect() }
}

fn symptom(line: &str) -> Option<Symptom> {
    let has = |words: &str| line.contains(words);
    let any = |all: &[&str]| all.iter().any(|words| line.contains(words));
    if any(&["Zonal Shift", "ZonalShift"]) {
        return Some(Symptom::ZonalShift);
    }
    // First who one is, then what one may: a failure of the first is wrapped in the name of the call that needed it.
    if any(&["AssumeRoleWithWebIdentity", "WebIdentityErr", "failed to load credentials", "sts.amazonaws.com"])
        || (has("sts.") && has(".amazonaws.com"))
    {
        let network = [
            "i/o timeout",
            "no such host",
            "connection refused",
            "deadline exceeded",
            "handshake timeout",
            "network is unreachable",
            "no route to host",
            "server misbehaving",
            "Client.Timeout",
            "connection reset",
        ];
        return Some(if has("No OpenIDConnect provider found") {
            Symptom::NoProvider
        } else if any(&network) {
            Symptom::Unreachable
        } else {
            Symptom::Refused
        });
    }
    if any(&[
        "unable to determine region from IMDS",
        "no EC2 IMDS role found",
        "NoCredentialProviders",
        "EC2RoleRequestError",
    ]) {
        return Some(Symptom::NoCredentials);
    }
    if any(&["NonExistentQueue", "QueueDoesNotExist"]) {
        return Some(Symptom::QueueMissing);
    }
    if any(&["failed detecting cluster endpoint", "failed to resolve cluster endpoint", "No cluster found for name"])
        || (has("failed to setup manager") && has("dial tcp"))
    {
        return Some(Symptom::ClusterEndpoint);
    }
    if let Some(action) = denied(line) {
        return Some(Symptom::Denied(action));
    }
    if has("no matches for kind") || (has("could not find the requested resource") && has("karpenter")) {
        return Some(Symptom::CrdMissing);
    }
    let election = any(&["resource lock", "leader election record", "leader-election", "leaderelection"]);
    (election && has("forbidden")).then_some(Symptom::LeaderElection)
}

/// The action that a refusal names, or that the SDK called when it was refused.
fn denied(line: &str) -> Option<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '-')).collect()
    };
    if let Some((_, rest)) = line.split_once("not authorized to perform: ") {
        return Some(word(rest)).filter(|action| action.contains(':'));
    }
    let refused = ["UnauthorizedOperation", "AccessDenied", "AuthFailure", "not authorized to perform this operation"];
    if !refused.iter().any(|words| line.contains(words)) {
        return None;
    }
    let (_, call) = line.split_once("operation error ")?;
    let (service, rest) = call.split_once(": ")?;
    let service = service.rsplit(' ').next().unwrap_or(service).to_lowercase();
    Some(format!("{service}:{}", word(rest)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn says(line: &str) -> Option<Symptom> {
        read(line).map(|said| said.symptom)
    }

    #[test]
    fn each_format_of_a_complaint_is_read() {
        for line in [
            r#"{"level":"ERROR","time":"t","message":"ec2 api connectivity check failed","error":"operation error STS: AssumeRoleWithWebIdentity, api error AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity"}"#,
            r#"{"level":"FATAL","logger":"controller","message":"Checking EC2 API connectivity, WebIdentityErr: failed to retrieve credentials\ncaused by: AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity\n\tstatus code: 403"}"#,
            "2022-02-10T10:33:35.421Z\tERROR\tcontroller\tfetching instance types, WebIdentityErr: failed to retrieve credentials caused by: AccessDenied",
            "panic: fetching queue, operation error STS: AssumeRoleWithWebIdentity, StatusCode: 403 [recovered]",
            r#"{"level":"error","ts":1657324768.8,"msg":"Reconciler error","error":"WebIdentityErr: failed to retrieve credentials\ncaused by: AccessDenied"}"#,
        ] {
            assert_eq!(says(line), Some(Symptom::Refused), "{line}");
        }
        assert_eq!(
            says(r#"{"level":"INFO","message":"AssumeRoleWithWebIdentity AccessDenied"}"#),
            None,
            "no complaint"
        );
    }

    #[test]
    fn the_latest_complaint_with_a_meaning_counts() {
        let log = "E1122 10:00:00.0 1 x.go:1] no matches for kind \"NodePool\" in version \"karpenter.sh/v1\"\n\
                   panic: Unable to find Cluster x in Zonal Shift.\n\
                   E1122 10:00:01.0 1 x.go:1] something else\n";
        assert_eq!(says(log), Some(Symptom::ZonalShift));
    }

    #[test]
    fn a_denial_names_its_action() {
        for (line, action) in [
            (
                "ERROR a, User: arn:aws:sts::1:assumed-role/x/1 is not authorized to perform: ec2:DescribeInstanceTypes because no",
                "ec2:DescribeInstanceTypes",
            ),
            (
                "ERROR b, operation error EC2: DescribeInstanceTypes, https response error StatusCode: 403, api error UnauthorizedOperation: You are not authorized to perform this operation.",
                "ec2:DescribeInstanceTypes",
            ),
            ("ERROR c, operation error EKS: DescribeCluster, AccessDeniedException: no", "eks:DescribeCluster"),
        ] {
            assert_eq!(says(line), Some(Symptom::Denied(action.to_owned())), "{line}");
        }
    }

    #[test]
    fn a_long_log_is_read_from_its_end_only_and_between_characters() {
        let old = "panic: Unable to find Cluster x in Zonal Shift.\n";
        let log = format!("{old}{}", "…\n".repeat(TAIL_BYTES));
        assert_eq!(says(&log), None);
        assert!(tail(&log).len() <= TAIL_BYTES);
        assert!(!tail(&format!("{}x", "ü".repeat(TAIL_BYTES))).is_empty());
    }

    #[test]
    fn last_lines_are_complaints_in_order_or_else_the_end() {
        let log = "one\npanic: two\nthree\npanic: four\n\n";
        assert_eq!(last_lines(log, 3), ["panic: two", "panic: four"]);
        assert_eq!(last_lines("a\nb\nc\n", 2), ["b", "c"]);
        assert_eq!(last_lines("", 2), Vec::<String>::new());
        let cut = last_lines(&format!("panic: {}", "x".repeat(5_000)), 1);
        assert_eq!(cut[0].chars().count(), LINE + 1);
    }
}
