//! Logging in to a cluster with IAM: a bearer token is a presigned STS request, and STS says whose it is.
//!
//! The rules are those of aws-iam-authenticator: <https://github.com/kubernetes-sigs/aws-iam-authenticator>.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use time::macros::format_description;
use time::{Duration, PrimitiveDateTime, UtcDateTime};
use url::Url;

use super::amazon::Caller;
use super::state::ClusterId;
use super::{Eks, access, amazon, objects};

const PREFIX: &str = "k8s-aws-v1.";
/// A token may be used this long after it was signed, whatever it says of itself.
const LIFETIME: Duration = Duration::minutes(15);
/// The parameters that a presigned GetCallerIdentity may have.
const PARAMETERS: &[&str] = &[
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "x-amz-user-agent",
];

/// A token, taken apart and found fit to be asked about.
#[derive(Debug, PartialEq, Eq)]
struct Presigned {
    host: String,
    query: String,
    access_key: String,
}

/// A Kubernetes user.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
    arn: String,
}

impl Eks {
    /// Answers a `TokenReview` (authentication.k8s.io/v1).
    pub(super) async fn review_token(&self, id: &ClusterId, review: &Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let status = match self.authenticate(id, token).await {
            Ok(user) => json!({
                "authenticated": true,
                "user": {"username": user.name, "uid": user.uid, "groups": user.groups,
                    "extra": {"arn": [user.arn]}},
            }),
            Err(reason) => {
                tracing::info!(cluster = id.name, "login refused: {reason}");
                json!({"authenticated": false, "error": reason})
            }
        };
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status})
    }

    async fn authenticate(&self, id: &ClusterId, token: &str) -> Result<User, String> {
        let presigned = presigned(token, UtcDateTime::now())?;
        let aws = self.aws(&id.account, &id.region);
        let caller = amazon::presigned_identity(&aws, &presigned.query, &presigned.host, &id.name)
            .await
            .map_err(|refusal| format!("STS refused the token: {refusal}"))?;
        let (principal, session) = session_of(&caller);
        let (principal_arn, username, groups, principal_id, rights) = {
            let mut state = self.state();
            let cluster = state.cluster(id).map_err(|refusal| refusal.message)?;
            let found = cluster.entries.iter().find(|(arn, _)| is_principal(arn, &principal));
            let (arn, entry) = found.ok_or_else(|| format!("no access entry for {}", caller.arn))?;
            let username = entry.view["username"].as_str().unwrap_or_default().to_owned();
            let groups = super::clusters::texts(&entry.view["kubernetesGroups"]);
            (arn.clone(), username, groups, entry.principal_id.clone(), access::rights(&entry.policies))
        };
        let current = self.principal_id(id, &principal_arn).await.map_err(|refusal| refusal.message)?;
        if current != principal_id {
            return Err(format!("the access entry of {principal_arn} is older than the principal: make it again"));
        }
        let (policy_groups, bindings) = rights;
        let admin = self.state().cluster(id).ok().and_then(|cluster| cluster.plane.clone()).map(|plane| plane.admin);
        if let Some(admin) = admin.filter(|_| !bindings.is_empty())
            && let Err(error) = objects::apply(&admin, &bindings).await
        {
            // EKS lets a policy name namespaces that are not there (yet); it gives nothing in them.
            tracing::debug!(cluster = id.name, "role bindings of {principal_arn}: {error:#}");
        }
        let private_name = if username.contains("{{EC2PrivateDNSName}}") {
            amazon::private_dns_name(&aws, &session).await.ok_or_else(|| format!("{session} is no instance"))?
        } else {
            String::new()
        };
        let name = username
            .replace("{{SessionName}}", &session.replace('@', "-"))
            .replace("{{SessionNameRaw}}", &session)
            .replace("{{AccountID}}", &caller.account)
            .replace("{{AccessKeyID}}", &presigned.access_key)
            .replace("{{EC2PrivateDNSName}}", &private_name);
        Ok(User {
            name,
            uid: format!("aws-iam-authenticator:{}:{}", caller.account, caller.user_id.split(':').next().unwrap_or("")),
            groups: groups.into_iter().chain(policy_groups).collect(),
            arn: caller.arn,
        })
    }
}

/// Whether an access entry's principal is who STS named. STS leaves a role's path out, and names are unique without.
fn is_principal(entry: &str, principal: &str) -> bool {
    let bare = |arn: &str| {
        let (head, path) = arn.rsplit_once(':').unwrap_or_default();
        let sort = path.split('/').next().unwrap_or_default();
        format!("{head}:{sort}/{}", path.rsplit('/').next().unwrap_or_default())
    };
    entry == principal || (entry.contains(":role/") && bare(entry) == bare(principal))
}

/// The IAM principal behind a caller and its session's name: `arn:aws:sts::1:assumed-role/r/s` is
/// `arn:aws:iam::1:role/r` and `s`.
fn session_of(caller: &Caller) -> (String, String) {
    let parts = caller.arn.split_once(":assumed-role/").and_then(|(_, path)| path.split_once('/'));
    match parts {
        Some((role, session)) => (format!("arn:aws:iam::{}:role/{role}", caller.account), session.to_owned()),
        None => (caller.arn.clone(), String::new()),
    }
}

/// Takes a token apart and checks what can be checked without STS.
fn presigned(token: &str, now: UtcDateTime) -> Result<Presigned, String> {
    let encoded = token.strip_prefix(PREFIX).ok_or("not an EKS token")?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).map_err(|_| "the token is not base64url")?;
    let text = String::from_utf8(bytes).map_err(|_| "the token is not text")?;
    let url = Url::parse(&text).map_err(|_| "the token is no URL")?;
    let host = url.host_str().unwrap_or_default();
    let amazon = url.scheme() == "https" && host.starts_with("sts.") && host.ends_with(".amazonaws.com");
    // Clients that are told an endpoint presign for it; here it is the gateway.
    let gateway = matches!(host, "127.0.0.1" | "localhost");
    if !(amazon || gateway) || url.path() != "/" {
        return Err(format!("the token's URL is not one of STS: {host}{}", url.path()));
    }
    let pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
        return Err(format!("the token's URL has a parameter {name}"));
    }
    let value = |name: &str| pairs.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str());
    if value("action") != "GetCallerIdentity" {
        return Err("the token is not of GetCallerIdentity".to_owned());
    }
    if !value("x-amz-signedheaders").split(';').any(|header| header == "x-k8s-aws-id") {
        return Err("the token does not sign the header x-k8s-aws-id".to_owned());
    }
    if value("x-amz-expires").parse::<u32>().is_ok_and(|seconds| seconds > 900) {
        return Err("the token's URL is valid for more than 15 minutes".to_owned());
    }
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let signed = PrimitiveDateTime::parse(value("x-amz-date"), format).map_err(|_| "the token has no X-Amz-Date")?;
    let age = now - signed.as_utc();
    if age > LIFETIME || age < -LIFETIME {
        return Err(format!("the token was signed {} minutes ago", age.whole_minutes()));
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let access_key = value("x-amz-credential").split('/').next().unwrap_or_default().to_owned();
    Ok(Presigned { host: format!("{host}{port}"), query: url.query().unwrap_or_default().to_owned(), access_key })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use time::macros::utc_datetime;

    const NOW: UtcDateTime = utc_datetime!(2026-11-22 12:00:00);

    fn token(url: &str) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(url))
    }

    fn url(action: &str, headers: &str, date: &str) -> String {
        format!(
            "https://sts.eu-west-1.amazonaws.com/?Action={action}&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIA1%2F20261122%2Feu-west-1%2Fsts%2Faws4_request&X-Amz-Date={date}&X-Amz-Expires=60\
             &X-Amz-SignedHeaders={headers}&X-Amz-Signature=00"
        )
    }

    #[test]
    fn a_presigned_identity_is_taken_apart() {
        let fine =
            presigned(&token(&url("GetCallerIdentity", "host%3Bx-k8s-aws-id", "20261122T115000Z")), NOW).unwrap();
        assert_eq!(fine.host, "sts.eu-west-1.amazonaws.com");
        assert_eq!(fine.access_key, "AKIA1");
        assert!(fine.query.starts_with("Action=GetCallerIdentity&"));
        let local = url("GetCallerIdentity", "host%3Bx-k8s-aws-id", "20261122T115000Z")
            .replace("https://sts.eu-west-1.amazonaws.com", "http://127.0.0.1:4000");
        assert_eq!(presigned(&token(&local), NOW).unwrap().host, "127.0.0.1:4000");
    }

    #[test]
    fn other_tokens_are_refused() {
        let headers = "host%3Bx-k8s-aws-id";
        for (token, why) in [
            ("ey.something".to_owned(), "not an EKS token"),
            (format!("{PREFIX}%%%"), "base64url"),
            (token(&url("AssumeRole", headers, "20261122T115900Z")), "GetCallerIdentity"),
            (token(&url("GetCallerIdentity", "host", "20261122T115900Z")), "x-k8s-aws-id"),
            (token(&url("GetCallerIdentity", headers, "20261122T114400Z")), "16 minutes ago"),
            (token(&url("GetCallerIdentity", headers, "20261122T115900Z").replace("sts.", "sst.")), "not one of STS"),
            (token(&(url("GetCallerIdentity", headers, "20261122T115900Z") + "&Role=x")), "parameter role"),
        ] {
            let refused = presigned(&token, NOW).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn sessions_are_their_roles() {
        let caller = Caller {
            arn: "arn:aws:sts::111122223333:assumed-role/PlatformAdmin/ann@example.com".to_owned(),
            user_id: "AROA1:ann@example.com".to_owned(),
            account: "111122223333".to_owned(),
        };
        let (principal, session) = session_of(&caller);
        assert_eq!(
            (principal.as_str(), session.as_str()),
            ("arn:aws:iam::111122223333:role/PlatformAdmin", "ann@example.com")
        );
        assert!(is_principal("arn:aws:iam::111122223333:role/people/PlatformAdmin", &principal));
        assert!(!is_principal("arn:aws:iam::444455556666:role/PlatformAdmin", &principal));
        assert!(!is_principal("arn:aws:iam::111122223333:user/PlatformAdmin", &principal));
    }
}
