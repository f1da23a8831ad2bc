//! The local cloud's parts, a file for each behaviour. One program, so that its tests run side by side and are linked once.

mod aws_cli_and_kubectl_work_against_a_cluster;
mod common;
mod ec2_behaves_as_aws;
mod karpenter_runs_as_a_container;
mod killed_leaves_nothing;
mod nodes_join_and_run_pods;
mod pod_identity_gives_a_process_its_role;
