//! EKS's health issues of clusters, node groups and add-ons, as one sentence each.

/// An issue as a sentence: code, message and, where there are any, the resources.
#[must_use]
pub fn issue(code: Option<&str>, message: Option<&str>, resources: &[String]) -> String {
    let message = message.unwrap_or("no message").trim_end_matches('.');
    let resources = if resources.is_empty() { String::new() } else { format!(" ({})", resources.join(", ")) };
    format!("{}: {message}{resources}.", code.unwrap_or("no code"))
}

/// What EKS says, or that it says nothing.
#[must_use]
pub fn said(issues: &[String]) -> String {
    if issues.is_empty() { "EKS names no health issue.".to_owned() } else { issues.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issue_is_one_sentence_whatever_is_missing() {
        let nodes = ["i-1".to_owned(), "i-2".to_owned()];
        assert_eq!(issue(Some("A"), Some("Failed to join."), &nodes), "A: Failed to join (i-1, i-2).");
        assert_eq!(issue(None, None, &[]), "no code: no message.");
        assert_eq!(said(&[]), "EKS names no health issue.");
    }
}
