//! Acceptance: the product on the local cloud, a file for each behaviour. One program, so that its tests run side by side
//! and are linked once. They begin in the order of their names: what takes longest is among the first, lest it run alone
//! at the end.

mod a_bad_spec_ends_before_anything_is_made;
mod a_cluster_is_made_by_one_event;
mod a_cluster_that_others_made_is_adopted;
mod a_failed_run_is_gone_on_with;
mod a_neighbour_is_never_touched;
mod a_network_is_kept_as_its_spec_asks;
mod a_plan_tells_what_would_be_done_and_changes_nothing;
mod a_provision_finishes_what_half_a_teardown_left;
mod a_stopped_run_is_finished_by_the_next;
mod a_teardown_leaves_nothing;
mod an_audit_lists_what_a_cluster_left_and_a_sweep_removes_it;
mod an_identity_is_switched_without_a_gap;
mod an_identity_race_never_reaches_a_person;
mod each_mistake_ends_under_its_own_name;
mod local_cloud;
mod local_cloud_refuses_what_aws_refuses;
mod two_clusters_share_an_account_and_a_vpc;
mod what_is_stuck_says_why;
