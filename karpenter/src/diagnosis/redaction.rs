//! Logs without what would let a reader act as somebody: tokens, keys, signatures.

/// What stands where a secret stood.
const REDACTED: &str = "[redacted]";

/// Names whose value is a secret, in whatever form it follows them: a query, a header, JSON, XML, an environment.
const NAMES: [&str; 9] = [
    "x-amz-security-token",
    "x-amz-signature",
    "webidentitytoken",
    "sessiontoken",
    "aws_session_token",
    "secretaccesskey",
    "aws_secret_access_key",
    "authorizationtoken",
    "authorization",
];

/// A text without its JSON Web Tokens, EKS login tokens, AWS access keys, session tokens, secret keys and signatures.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        if !before.is_ascii_alphanumeric()
            && let Some((kept, secret)) = secret(rest)
        {
            clean.push_str(&rest[..kept]);
            clean.push_str(REDACTED);
            rest = &rest[kept + secret..];
            before = ']';
            continue;
        }
        clean.push(next);
        before = next;
        rest = &rest[next.len_utf8()..];
    }
    clean
}

/// How many bytes to keep and how many of the following to hide, if a secret begins here.
fn secret(text: &str) -> Option<(usize, usize)> {
    let run = |text: &str, of: fn(char) -> bool| text.find(|c| !of(c)).unwrap_or(text.len());
    let token = |c: char| c.is_ascii_alphanumeric() || "._-=+/%~".contains(c);
    if text.starts_with("eyJ") || text.starts_with("k8s-aws-v1.") {
        let length = run(text, token);
        return (length >= 20).then_some((0, length));
    }
    if ["AKIA", "ASIA"].iter().any(|kind| text.starts_with(kind)) {
        let length = run(text, |c| c.is_ascii_uppercase() || c.is_ascii_digit());
        return (length >= 16).then_some((0, length));
    }
    let name =
        NAMES.iter().find(|name| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))?;
    let kept = name.len() + run(&text[name.len()..], |c| "\\\"' :=>[".contains(c));
    if !text[name.len()..kept].contains([':', '=', '>']) {
        return None;
    }
    // A header's value has spaces in it: `Bearer …`, `AWS4-HMAC-SHA256 Credential=…, Signature=…`.
    let whole_line = *name == "authorization";
    let value = text[kept..]
        .find(|c: char| {
            c == '\n' || "\"'<\\".contains(c) || (!whole_line && (c.is_whitespace() || "&,;}]".contains(c)))
        })
        .unwrap_or(text.len() - kept);
    (value > 0).then_some((kept, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keys_and_signatures_go_and_the_rest_stays() {
        for (text, clean) in [
            ("token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln, then", "token [redacted], then"),
            ("k8s-aws-v1.aHR0cHM6Ly9zdHMuZXU", "[redacted]"),
            ("key AKIAIOSFODNN7EXAMPLE and ASIAQWERTYUIOPASDFGH.", "key [redacted] and [redacted]."),
            (
                "GET /?a=b&X-Amz-Security-Token=FwoG%2Fx&X-Amz-Date=1",
                "GET /?a=b&X-Amz-Security-Token=[redacted]&X-Amz-Date=1",
            ),
            ("Authorization: Bearer abc def\nnext", "Authorization: [redacted]\nnext"),
            (r#"{"SessionToken":"IQoJb3/+=","x":1}"#, r#"{"SessionToken":"[redacted]","x":1}"#),
            ("<SecretAccessKey>wJalr/x</SecretAccessKey>", "<SecretAccessKey>[redacted]</SecretAccessKey>"),
            (r#"\"WebIdentityToken\": \"abc.def\""#, r#"\"WebIdentityToken\": \"[redacted]\""#),
            (
                "WebIdentityToken=abc&RoleArn=arn:aws:iam::1:role/x",
                "WebIdentityToken=[redacted]&RoleArn=arn:aws:iam::1:role/x",
            ),
        ] {
            assert_eq!(redact(text), clean);
        }
    }

    #[test]
    fn words_that_only_look_alike_stay() {
        for text in [
            "AKIA",
            "ASIAN cuisine",
            "the eyJ prefix",
            "authorization failed",
            "MYAKIAIOSFODNN7EXAMPLE",
            "api error AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity",
            "grüße 🚢",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
