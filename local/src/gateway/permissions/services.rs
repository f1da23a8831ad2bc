//! The services that need a line each: tables, queues, rules, stacks, logs, functions, executions.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Permission, Tags, arn, prefix, tags_at};
use crate::gateway::call::Call;
use crate::gateway::wire;

pub(super) fn of(call: &Call) -> Vec<Permission> {
    let body = || serde_json::from_slice::<Value>(&call.body).unwrap_or_default();
    match call.service.as_str() {
        "sts" => sts(call),
        "dynamodb" => dynamodb(call, &body()),
        "sqs" => sqs(call, &body()),
        "events" => events(call, &body()),
        "cloudformation" => cloudformation(call),
        "logs" => logs(call, &body()),
        "states" => states(call, &body()),
        "ssm" => ssm(call, &body()),
        "lambda" => lambda(call),
        "s3" => s3(call),
        "scheduler" => scheduler(call, &body()),
        "eks-auth" => {
            let cluster = wire::path_segments(&call.uri).get(1).cloned().unwrap_or_default();
            vec![Permission::on(action(call), arn(call, "eks", &format!("cluster/{cluster}")))]
        }
        "elasticloadbalancing" => {
            let named = wire::parameters(call);
            let arns =
                ["LoadBalancerArn", "TargetGroupArn", "ListenerArn"].iter().find_map(|member| named.get(*member));
            let classic = named.get("LoadBalancerName");
            let arn = arns
                .cloned()
                .or_else(|| Some(arn(call, "elasticloadbalancing", &format!("loadbalancer/{}", classic?))));
            let looks = call.action.starts_with("Describe");
            vec![
                arn.filter(|_| !looks)
                    .map_or_else(|| Permission::alone(action(call)), |arn| Permission::on(action(call), arn)),
            ]
        }
        "arc-zonal-shift" => {
            let of = wire::path_segments(&call.uri).last().cloned().unwrap_or_default();
            vec![Permission::on(action(call), &of).with("arc-zonal-shift:ResourceIdentifier", &of)]
        }
        "kms" => vec![match body()["KeyId"].as_str() {
            Some(key) if key.starts_with("arn:") => Permission::on(action(call), key),
            Some(key) => Permission::on(action(call), arn(call, "kms", &format!("key/{key}"))),
            None => Permission::alone(action(call)),
        }],
        // Prices, quotas, tags across services, groups of instances: nothing that is read there is a resource.
        _ => vec![Permission::alone(action(call))],
    }
}

fn action(call: &Call) -> String {
    format!("{}:{}", prefix(&call.service), call.action)
}

fn sts(call: &Call) -> Vec<Permission> {
    let parameters = wire::parameters(call);
    match (call.action.as_str(), parameters.get("RoleArn")) {
        // Anyone may ask who they are; web identity is its own credential.
        ("GetCallerIdentity" | "AssumeRoleWithWebIdentity" | "AssumeRoleWithSAML", _) => Vec::new(),
        ("AssumeRole", Some(role)) => {
            let mut needed = Permission::on(action(call), role);
            for (member, key) in [("ExternalId", "sts:ExternalId"), ("RoleSessionName", "sts:RoleSessionName")] {
                if let Some(value) = parameters.get(member) {
                    needed = needed.with(key, value);
                }
            }
            vec![needed]
        }
        _ => vec![Permission::alone(action(call))],
    }
}

/// A transaction needs what each of its items does.
fn dynamodb(call: &Call, body: &Value) -> Vec<Permission> {
    let table = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        if name.starts_with("arn:") { name.to_owned() } else { arn(call, "dynamodb", &format!("table/{name}")) }
    };
    let items = body["TransactItems"].as_array().into_iter().flatten();
    let of_items: Vec<Permission> = items
        .flat_map(|item| item.as_object().into_iter().flatten())
        .map(|(kind, item)| {
            let name = if kind == "ConditionCheck" { "ConditionCheckItem".to_owned() } else { format!("{kind}Item") };
            Permission::on(format!("dynamodb:{name}"), table(&item["TableName"]))
        })
        .collect();
    if !of_items.is_empty() {
        return of_items;
    }
    if let Some(tables) = body["RequestItems"].as_object() {
        return tables.keys().map(|name| Permission::on(action(call), table(&Value::from(name.as_str())))).collect();
    }
    match (body["TableName"].is_string(), body["IndexName"].as_str()) {
        (true, Some(index)) => {
            vec![Permission::on(action(call), format!("{}/index/{index}", table(&body["TableName"])))]
        }
        (true, None) => vec![Permission::on(action(call), table(&body["TableName"]))],
        (false, _) => match body["ResourceArn"].as_str() {
            Some(arn) => vec![Permission::on(action(call), arn)],
            None => vec![Permission::alone(action(call))],
        },
    }
}

/// JSON's tags: a map, or a list of keys and values.
fn tags(value: &Value) -> Tags {
    let listed = value.as_array().into_iter().flatten().filter_map(|tag| {
        let of = |upper: &str, lower: &str| tag[upper].as_str().or_else(|| tag[lower].as_str()).map(str::to_owned);
        Some((of("Key", "key")?, of("Value", "value").unwrap_or_default()))
    });
    let mapped = value.as_object().into_iter().flatten();
    mapped.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).chain(listed).collect()
}

fn sqs(call: &Call, body: &Value) -> Vec<Permission> {
    let named = if body.is_object() { BTreeMap::new() } else { wire::parameters(call) };
    let text = |member: &str| body[member].as_str().map(str::to_owned).or_else(|| named.get(member).cloned());
    let name = text("QueueName").or_else(|| Some(text("QueueUrl")?.rsplit('/').next()?.to_owned()));
    let Some(name) = name else {
        return vec![Permission::alone(action(call))];
    };
    let queue = arn(call, "sqs", &name);
    // The one operation whose tags are called so.
    let tags = if call.action == "CreateQueue" { tags(&body["tags"]) } else { tags(&body["Tags"]) };
    if call.action != "CreateQueue" {
        return vec![Permission::on(action(call), queue).requesting(&tags)];
    }
    let mut needed = vec![Permission::making(action(call), &queue, &tags)];
    if !tags.is_empty() {
        needed.push(Permission::making("sqs:TagQueue", queue, &tags));
    }
    needed
}

fn events(call: &Call, body: &Value) -> Vec<Permission> {
    let bus = body["EventBusName"].as_str().unwrap_or("default").rsplit('/').next().unwrap_or("default");
    let rule = |name: &str| match bus {
        "default" => arn(call, "events", &format!("rule/{name}")),
        bus => arn(call, "events", &format!("rule/{bus}/{name}")),
    };
    let named = body["Name"].as_str().filter(|_| call.action.ends_with("Rule")).or_else(|| body["Rule"].as_str());
    let tags = tags(&body["Tags"]);
    let mut needed = match (call.action.as_str(), named, body["ResourceARN"].as_str()) {
        ("PutEvents", ..) => {
            let entries = body["Entries"].as_array().into_iter().flatten();
            let buses = entries.map(|entry| entry["EventBusName"].as_str().unwrap_or("default"));
            let mut buses: Vec<&str> = buses.map(|bus| bus.rsplit('/').next().unwrap_or(bus)).collect();
            buses.dedup();
            let on = |bus: &&str| Permission::on(action(call), arn(call, "events", &format!("event-bus/{bus}")));
            buses.iter().map(on).collect()
        }
        ("PutRule", Some(name), _) => {
            let mut needed = vec![Permission::making(action(call), rule(name), &tags)];
            if !tags.is_empty() {
                needed.push(Permission::making("events:TagResource", rule(name), &tags));
            }
            needed
        }
        (_, Some(name), _) => vec![Permission::on(action(call), rule(name))],
        (_, None, Some(arn)) => vec![Permission::on(action(call), arn).requesting(&tags)],
        (_, None, None) => vec![Permission::alone(action(call))],
    };
    let targets = body["Targets"].as_array().into_iter().flatten();
    let roles = targets.filter_map(|target| target["RoleArn"].as_str()).chain(body["RoleArn"].as_str());
    needed.extend(roles.map(|role| Permission::pass_role(role, "events.amazonaws.com")));
    needed
}

fn cloudformation(call: &Call) -> Vec<Permission> {
    let parameters = wire::parameters(call);
    let named =
        parameters.get("StackName").or_else(|| parameters.get("ChangeSetName").filter(|name| name.contains(":stack/")));
    let Some(name) = named.filter(|_| call.action != "ValidateTemplate") else {
        // Describing all stacks is listing them.
        let listing = call.action == "DescribeStacks";
        return vec![Permission::alone(if listing { "cloudformation:ListStacks".to_owned() } else { action(call) })];
    };
    let stack =
        if name.starts_with("arn:") { name.clone() } else { arn(call, "cloudformation", &format!("stack/{name}/*")) };
    let tags = tags_at(&parameters, "Tags.member");
    let made = matches!(call.action.as_str(), "CreateStack" | "CreateChangeSet");
    let mut needed = vec![if made {
        Permission::making(action(call), &stack, &tags)
    } else {
        Permission::on(action(call), &stack).requesting(&tags)
    }];
    if !tags.is_empty() {
        let tag = Permission::on("cloudformation:TagResource", stack).requesting(&tags);
        needed.push(Permission { made_with: made.then_some(tags), ..tag });
    }
    needed.extend(parameters.get("RoleARN").map(|role| Permission::pass_role(role, "cloudformation.amazonaws.com")));
    needed
}

fn logs(call: &Call, body: &Value) -> Vec<Permission> {
    let arn = match (body["logGroupName"].as_str(), body["resourceArn"].as_str()) {
        _ if call.action == "DescribeLogGroups" => return vec![Permission::alone(action(call))],
        (Some(name), _) => arn(call, "logs", &format!("log-group:{name}")),
        (None, Some(arn)) => arn.to_owned(),
        (None, None) => return vec![Permission::alone(action(call))],
    };
    let tags = tags(&body["tags"]);
    if call.action != "CreateLogGroup" {
        return vec![Permission::on(action(call), arn).requesting(&tags)];
    }
    let mut needed = vec![Permission::making(action(call), &arn, &tags)];
    if !tags.is_empty() {
        needed.push(Permission::making("logs:TagResource", arn, &tags));
    }
    needed
}

fn states(call: &Call, body: &Value) -> Vec<Permission> {
    let named = ["executionArn", "stateMachineArn", "resourceArn"].iter().find_map(|member| body[*member].as_str());
    let mut needed = vec![match (named, body["name"].as_str()) {
        (Some(arn), _) => Permission::on(action(call), arn),
        (None, Some(name)) => Permission::on(action(call), arn(call, "states", &format!("stateMachine:{name}"))),
        (None, None) => Permission::alone(action(call)),
    }];
    needed.extend(body["roleArn"].as_str().map(|role| Permission::pass_role(role, "states.amazonaws.com")));
    needed
}

fn ssm(call: &Call, body: &Value) -> Vec<Permission> {
    // A public parameter's ARN has no account.
    let parameter = |name: &str| match name.strip_prefix("/aws/") {
        Some(_) => format!("arn:aws:ssm:{}::parameter{name}", call.region),
        None => arn(call, "ssm", &format!("parameter/{}", name.trim_start_matches('/'))),
    };
    let listed = body["Names"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let names: Vec<&str> = body["Name"].as_str().or_else(|| body["Path"].as_str()).into_iter().chain(listed).collect();
    if names.is_empty() {
        return vec![Permission::alone(action(call))];
    }
    names.into_iter().map(|name| Permission::on(action(call), parameter(name))).collect()
}

fn lambda(call: &Call) -> Vec<Permission> {
    let name = if call.action == "Invoke" { "lambda:InvokeFunction".to_owned() } else { action(call) };
    let path = wire::path_segments(&call.uri);
    let Some(function) = path.get(2) else {
        return vec![Permission::alone(name)];
    };
    let function = if function.starts_with("arn:") {
        function.clone()
    } else {
        arn(call, "lambda", &format!("function:{function}"))
    };
    let qualified = wire::query_parameter(&call.uri, "Qualifier").map(|qualifier| format!("{function}:{qualifier}"));
    vec![Permission::on(name, qualified.unwrap_or(function))]
}

fn s3(call: &Call) -> Vec<Permission> {
    let name = match call.action.as_str() {
        "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "HeadObject" => "GetObject",
        "ListBuckets" => "ListAllMyBuckets",
        other => other,
    };
    let path = wire::path_segments(&call.uri);
    let name = format!("s3:{name}");
    vec![match path.as_slice() {
        [] => Permission::alone(name),
        [bucket] => Permission::on(name, format!("arn:aws:s3:::{bucket}")),
        [bucket, key @ ..] => Permission::on(name, format!("arn:aws:s3:::{bucket}/{}", key.join("/"))),
    }]
}

fn scheduler(call: &Call, body: &Value) -> Vec<Permission> {
    let path = wire::path_segments(&call.uri);
    let mut needed = vec![match path.as_slice() {
        [kind, name] if kind == "schedules" => {
            let group = wire::query_parameter(&call.uri, "groupName");
            let group = group.or_else(|| body["GroupName"].as_str().map(str::to_owned)).unwrap_or("default".to_owned());
            Permission::on(action(call), arn(call, "scheduler", &format!("schedule/{group}/{name}")))
        }
        [_, name] => Permission::on(action(call), arn(call, "scheduler", &format!("schedule-group/{name}"))),
        _ => Permission::alone(action(call)),
    }];
    let role = body["Target"]["RoleArn"].as_str();
    needed.extend(role.map(|role| Permission::pass_role(role, "scheduler.amazonaws.com")));
    needed
}
