//! CloudFormation: our own engine has the stacks whose resource types it knows, MiniStack those of SAM templates.

use std::sync::Arc;

use async_trait::async_trait;

use super::backend::MiniStack;
use crate::cloudformation::CloudFormation;
use crate::gateway::call::{Answer, Call, Principal, Service};
use crate::gateway::wire;

/// Both engines as one service.
pub struct Stacks {
    own: Arc<CloudFormation>,
    ministack: MiniStack,
}

impl Stacks {
    /// `own` has what it takes, MiniStack the rest; a listing of all stacks shows those of both.
    #[must_use]
    pub fn new(own: Arc<CloudFormation>, ministack: MiniStack) -> Self {
        Self { own, ministack }
    }

    /// A listing of all stacks: MiniStack's whole, then our own, cut into pages together.
    async fn listing(&self, call: Call, list: &str) -> Answer {
        let mut members = Vec::new();
        let mut whole = from_page(&call, None);
        loop {
            let answer = self.ministack.handle(whole.clone()).await;
            if !answer.status.is_success() {
                return answer;
            }
            let text = String::from_utf8_lossy(&answer.body);
            let Some((found, next)) = read(&text, list) else { return answer };
            members.extend(found);
            let Some(next) = next else { break };
            whole = from_page(&call, Some(&next));
        }
        members.extend(self.own.listed(&call));
        match self.own.page(&call, list, members) {
            Ok(page) => wire::query_answer(&call, &page),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

/// The call for a page of MiniStack's, to which our tokens are nothing. It is the cloud's own: a function's signature
/// would not fit it.
fn from_page(call: &Call, token: Option<&str>) -> Call {
    let mut parameters = wire::parameters(call);
    parameters.remove("NextToken");
    parameters.extend(token.map(|token| ("NextToken".to_owned(), token.to_owned())));
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    let principal = Principal::service("cloudformation.amazonaws.com", &call.account);
    Call { body: body.into(), principal, ..call.clone() }
}

/// The members of a list in an answer, as they stand there, and the token of the next page.
fn read(xml: &str, list: &str) -> Option<(Vec<String>, Option<String>)> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let named = |name: &str| document.descendants().find(|node| node.tag_name().name() == name);
    let inner = |node: roxmltree::Node<'_, '_>| {
        let (start, end) = (node.first_child()?.range().start, node.last_child()?.range().end);
        xml.get(start..end).map(str::to_owned)
    };
    let members = named(list)?.children().filter(roxmltree::Node::is_element).filter_map(inner).collect();
    Some((members, named("NextToken").and_then(|node| node.text()).map(str::to_owned)))
}

#[async_trait]
impl Service for Stacks {
    async fn handle(&self, call: Call) -> Answer {
        let of_all = !wire::parameters(&call).contains_key("StackName");
        match call.action.as_str() {
            "DescribeStacks" if of_all => self.listing(call, "Stacks").await,
            "ListStacks" => self.listing(call, "StackSummaries").await,
            _ if self.own.takes(&call) => self.own.handle(call).await,
            _ => self.ministack.handle(call).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn members_are_taken_as_they_stand() {
        let xml = "<r xmlns=\"x\"><Stacks><member><StackName>a</StackName><Tags><member/></Tags></member> <member><StackName>b</StackName></member></Stacks><NextToken>t</NextToken></r>";
        let (members, next) = read(xml, "Stacks").unwrap();
        assert_eq!(members, ["<StackName>a</StackName><Tags><member/></Tags>", "<StackName>b</StackName>"]);
        assert_eq!(next.as_deref(), Some("t"));
        assert_eq!(read("<r/>", "Stacks"), None);
    }
}
