//! Deploying the control plane's own template to the cloud, by the real sam CLI.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::process::Command;

use crate::cloud::ACCOUNT;
use crate::gateway::call::Aws;
use crate::paths::Paths;
use crate::processes;

/// The stack that the template becomes, as in samconfig.toml.
pub const STACK: &str = "slipway";

/// Lays out what `sam build` would: the template beside the state machine, and a folder with the function's
/// `bootstrap`. That is two lines of shell which become the host's own binary, so that the zip is tiny and a rebuilt
/// binary is the one that runs; MiniStack ignores that the template asks for arm64.
///
/// # Errors
/// Where a file cannot be read or written.
pub fn lay_out(folder: &Path, bootstrap: &Path) -> anyhow::Result<PathBuf> {
    let repository = Paths::repository();
    for part in ["infra", "statemachine", "functions"] {
        let part = folder.join(part);
        std::fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    let template = folder.join("infra/template.yaml");
    copy(&repository.join("infra/template.yaml"), &template)?;
    let machines = repository.join("statemachine");
    for file in std::fs::read_dir(&machines).with_context(|| format!("read {}", machines.display()))? {
        let file = file?;
        if file.file_name().to_string_lossy().ends_with(".asl.json") {
            copy(&file.path(), &folder.join("statemachine").join(file.file_name()))?;
        }
    }
    let stub = folder.join("functions/bootstrap");
    let program = bootstrap.display().to_string().replace('\'', r"'\''");
    std::fs::write(&stub, format!("#!/bin/sh\nexec '{program}'\n"))
        .with_context(|| format!("write {}", stub.display()))?;
    std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", stub.display()))?;
    Ok(template)
}

/// The parameters that the template gets: what is real time in it passes as fast as everything else, and everything in
/// this account may be swept, since it goes with the cloud anyway.
#[must_use]
pub fn parameters(speed: f64) -> [String; 3] {
    let grace = (120.0 / speed).ceil().max(1.0);
    ["LogLevel=info".to_owned(), format!("LeaseGraceSeconds={grace}"), format!("SweepAccounts={ACCOUNT}")]
}

/// Deploys a laid out template with parameters into a bucket's cloud.
///
/// # Errors
/// Where sam is missing or fails, with its last lines.
pub async fn deploy(
    sam: &Path,
    template: &Path,
    parameters: &[String],
    bucket: &str,
    env: &[(String, String)],
    home: &Path,
    log: &Path,
) -> anyhow::Result<()> {
    let mut command = Command::new(sam);
    command
        .arg("deploy")
        .arg("--template-file")
        .arg(template)
        .args(["--stack-name", STACK, "--s3-bucket", bucket, "--no-confirm-changeset", "--no-fail-on-empty-changeset"])
        .args(["--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "--parameter-overrides"])
        .args(parameters)
        .current_dir(home)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("SAM_CLI_TELEMETRY", "0")
        .env("SAM_CLI_POLL_DELAY", "0.3");
    let mut child = processes::spawn("sam deploy", command, log)?;
    let status = child.wait().await?;
    if !status.success() {
        bail!("sam deploy ended with {status}; its last lines:\n{}", child.last_words());
    }
    Ok(())
}

/// Why the stack's resources failed, a line each; empty where none did.
pub async fn reasons(aws: &Aws) -> String {
    let events = aws.query("cloudformation", "DescribeStackEvents", &[("StackName", STACK)]).await.unwrap_or_default();
    let Ok(parsed) = roxmltree::Document::parse(&events) else {
        return String::new();
    };
    let failed = parsed.descendants().filter(|node| node.tag_name().name() == "member").filter_map(|event| {
        let member = |name: &str| event.children().find(|node| node.tag_name().name() == name)?.text();
        let status = member("ResourceStatus").filter(|status| status.ends_with("_FAILED"))?;
        Some(format!("{} {status}: {}", member("LogicalResourceId")?, member("ResourceStatusReason").unwrap_or("")))
    });
    failed.collect::<Vec<_>>().join("\n")
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
