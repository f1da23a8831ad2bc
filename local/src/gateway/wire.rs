//! The wire protocols, apart from the services: how each dresses an answer and an error.

use serde_json::Value;

use super::call::{Aws, AwsError};

pub(crate) async fn send_query(_aws: &Aws, _service: &str, _action: &str, _params: &[(&str, &str)]) -> Result<String, AwsError> {
    Err(AwsError::new(501, "NotImplemented", "the wire protocols are not written yet"))
}

pub(crate) async fn send_json(_aws: &Aws, _service: &str, _target: &str, _body: &Value) -> Result<Value, AwsError> {
    Err(AwsError::new(501, "NotImplemented", "the wire protocols are not written yet"))
}
