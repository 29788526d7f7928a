"""What a store must do, property by property, and the tests that show it: the source of a table in the docs.

Most of these tests are promises of the conformance suite, so they run for every store of ours and for yours.
The others are in tests/stores and tests/processes. A property that is not covered says why.
"""

from __future__ import annotations

__all__ = ["PROPERTIES"]

PROPERTIES: dict[int, tuple[str, tuple[str, ...] | str]] = {
    1: (
        "If a writer is killed at any moment, the old record is there, or the new one",
        (
            "test_a_killed_writer_leaves_a_whole_record",
            "test_f29_a_writer_killed_at_any_step_leaves_the_old_record_or_the_new_one",
        ),
    ),
    2: ("A reader never sees a torn record", ("test_a_reader_never_sees_a_torn_record",)),
    3: (
        "A stored record is durable when the call returns",
        (
            "test_what_is_stored_survives_its_killed_writer",
            "test_f29_a_file_is_synced_before_its_rename_and_its_directory_after",
        ),
    ),
    4: ("One task at a time holds a claim", ("test_one_task_at_a_time_holds_the_claim",)),
    5: (
        "One of two store objects in one process holds a claim",
        ("test_a_claim_excludes_every_other_store_object", "test_one_task_at_a_time_holds_the_claim"),
    ),
    6: (
        "One of eight processes holds a claim",
        (
            "test_one_process_at_a_time_holds_the_claim",
            "test_f16_eight_processes_never_hold_one_claim_at_once",
        ),
    ),
    7: (
        "A claim and its waiters do not block other keys",
        (
            "test_a_claim_does_not_block_other_keys",
            "test_waiting_for_another_process_does_not_block_the_event_loop",
        ),
    ),
    8: (
        "`seen` decides between a newer record and the claim; None stands for no record",
        (
            "test_seen_decides_between_a_newer_record_and_the_claim",
            "test_a_newer_record_is_returned_while_another_holds_the_claim",
            "test_f08_a_record_is_read_again_under_the_lock",
        ),
    ),
    9: (
        "Waiters do not queue: one commit serves all of them, and each of them needs one look",
        (
            "test_one_commit_serves_all_waiters",
            "test_one_commit_serves_all_waiting_processes",
            "test_f31_each_waiter_needs_one_look_however_many_there_are",
        ),
    ),
    10: (
        "When a holder is killed, a waiter gets the claim",
        (
            "test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it",
            "test_f14_when_the_holder_is_killed_a_waiting_process_proceeds",
        ),
    ),
    11: (
        "The next holder learns of a killed one whose request had left, and of no other one",
        (
            "test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it",
            "test_a_holder_killed_before_it_sends_leaves_nothing",
            "test_a_holder_that_has_sent_nothing_is_no_interruption",
            "test_an_interruption_outlives_holders_that_send_nothing",
            "test_an_interruption_is_as_old_as_the_last_request",
            "test_a_clean_end_is_not_an_interruption",
            "test_a_killed_waiter_leaves_nothing_behind",
            "test_what_is_stored_survives_its_killed_writer",
        ),
    ),
    12: (
        "A holder that was stopped and continues overwrites nothing newer. (No store with leases ships yet: "
        "here a stopped holder keeps its lock, and the newer record comes from a sign-in.)",
        (
            "test_a_paused_holder_overwrites_nothing_newer",
            "test_f11_a_paused_holder_gives_way_to_a_newer_generation",
        ),
    ),
    13: (
        "A late commit is stored if nothing newer is, whether or not the claim is still held",
        (
            "test_a_late_commit_is_stored_if_nothing_newer_is",
            "test_a_paused_holder_commits_if_nothing_newer_is_stored",
            "test_f12_a_rotated_token_is_saved_although_the_lock_was_lost",
        ),
    ),
    14: (
        "A sign-in or a deletion during a claim wins over its commit",
        (
            "test_a_sign_in_during_a_claim_supersedes_its_commit",
            "test_a_deletion_during_a_claim_supersedes_its_commit",
            "test_f41_a_late_refresh_does_not_undo_a_sign_out_in_another_process",
        ),
    ),
    15: (
        "A commit whose result was lost can be repeated. (Over a network: when a network store ships.)",
        ("test_a_repeated_commit_returns_the_same_record",),
    ),
    16: (
        "If a wait for a claim is cancelled at any point, it holds nothing",
        ("test_a_claim_cancelled_at_any_point_holds_nothing",),
    ),
    17: (
        "If the caller of a commit is cancelled, the record is stored and the claim is free",
        (
            "test_commit_finishes_although_its_caller_is_cancelled",
            "test_abandon_finishes_although_its_caller_is_cancelled",
            "test_put_finishes_although_its_caller_is_cancelled",
            "test_sending_finishes_although_its_caller_is_cancelled",
        ),
    ),
    18: (
        "An abandoned claim goes to a waiter; ending a claim twice is safe; an ended claim sends nothing",
        (
            "test_a_claim_that_has_ended_sends_nothing",
            "test_an_abandoned_claim_goes_to_one_waiter",
            "test_ending_a_claim_twice_is_safe",
            "test_f13_a_holder_releases_only_its_own_lock",
        ),
    ),
    19: (
        "No version is used twice: not after a deletion, not by a store that was opened again. (Restart of a "
        "server: when a network store ships.)",
        ("test_no_version_is_used_twice",),
    ),
    20: (
        "Damaged content raises a typed error, and the next put repairs it",
        ("test_damaged_data_is_an_error_until_the_next_put",),
    ),
    21: (
        "Files with a wrong mode, of another owner or behind a link are not used; ours are always 0600",
        (
            "test_files_are_private_under_any_umask",
            "test_a_file_that_others_may_open_is_not_used",
            "test_a_directory_that_others_may_enter_is_not_used",
            "test_a_directory_that_others_may_write_to_is_not_used",
            "test_a_file_of_another_user_is_not_used",
            "test_a_symbolic_link_is_not_followed",
        ),
    ),
    22: (
        "A full disk, or one without inodes, is noticed at the claim, and a claim has room for its commit",
        (
            "test_a_full_disk_fails_the_claim",
            "test_a_claim_reserves_space_for_its_commit",
            "test_a_disk_without_inodes_fails_the_claim_and_no_commit",
            "test_a_claim_reserves_a_file_for_its_commit",
            "test_too_many_claims_for_the_limit_of_open_files_fail_at_the_claim",
            "test_a_failed_write_changes_nothing_and_can_be_repeated",
            "test_f29_a_disk_that_cannot_be_written_costs_no_refresh_token",
        ),
    ),
    23: (
        "A read-only directory is noticed at the claim",
        (
            "test_a_read_only_directory_fails_the_claim",
            "test_f29_a_disk_that_cannot_be_written_costs_no_refresh_token",
        ),
    ),
    24: (
        "Every text except the empty one is a key of its own: any script, length, case or reserved name",
        ("test_every_text_except_the_empty_one_is_a_separate_key", "test_an_empty_key_is_a_value_error"),
    ),
    25: (
        "Data of 0 bytes to 1 MiB is stored as it is",
        ("test_data_may_have_from_no_byte_to_one_mebibyte",),
    ),
    26: (
        "If a clock jumps, no age is negative or too small, and no caller waits for a time in the future",
        (
            "test_a_record_says_how_old_it_is",
            "test_no_clock_makes_a_record_younger",
            "test_after_a_clock_reset_an_interruption_counts_as_old",
            "test_f15_times_in_the_future_block_no_claim",
            "test_ages_are_measured_by_the_boot_clock",
        ),
    ),
    27: (
        "Of many concurrent deletes, one returns True, and the others raise nothing",
        ("test_one_of_many_concurrent_deletes_returns_true", "test_delete_removes_only_the_expected_version"),
    ),
    28: (
        "Sixteen processes may start at once on an empty store",
        ("test_sixteen_processes_may_start_at_once",),
    ),
    29: (
        "A child that is forked during a claim does not keep it alive, and may use the store itself",
        (
            "test_a_forked_child_keeps_no_claim_alive",
            "test_a_forked_child_may_use_the_store_it_inherited",
            "test_a_claim_of_the_parent_sends_nothing_in_a_forked_child",
        ),
    ),
    30: (
        "If a lock file is removed while it is locked, nothing is lost",
        (
            "test_removing_a_lock_file_loses_nothing",
            "test_f12_a_rotated_token_is_saved_although_the_lock_was_lost",
            "test_f13_a_holder_releases_only_its_own_lock",
        ),
    ),
    31: (
        "One process can wait for a hundred keys at once",
        (
            "test_a_hundred_keys_held_elsewhere_can_be_waited_for_at_once",
            "test_fifty_keys_can_be_waited_for_at_once",
            "test_f30_two_hundred_waiters_hold_no_descriptor_and_no_connection",
        ),
    ),
    32: (
        "The backend restarts during a wait, a claim or a commit",
        "not covered, because no store with a server ships yet. A database file that is removed and made "
        "again under an open store is covered (test_no_write_goes_to_a_removed_or_"
        "replaced_database).",
    ),
    33: (
        "The wait for a backend that hangs is bounded, delays no other work, and no refresh token is spent. "
        "(Here: another program that keeps it locked; a server: when a network store ships.)",
        (
            "test_a_locked_store_fails_the_claim",
            "test_a_write_to_a_locked_store_ends_and_can_be_repeated",
            "test_a_write_to_a_locked_store_delays_no_reader",
            "test_closing_ends_although_the_store_is_locked",
            "test_closing_does_not_wait_for_a_claim_that_was_cancelled",
            "test_a_stuck_writer_stops_no_other_key",
            "test_f03_a_store_that_never_answers_is_a_typed_error_in_time",
        ),
    ),
    34: (
        "If a wake-up is lost, waiters are not delayed for long: they also look on their own",
        (
            "test_a_commit_is_noticed_although_its_process_is_killed_at_once",
            "test_f31_each_waiter_needs_one_look_however_many_there_are",
        ),
    ),
    35: (
        "If an event loop was blocked for long, nothing is lost. (No lease can run out before a store with "
        "leases ships.)",
        (
            "test_a_holder_with_a_blocked_event_loop_commits_if_nothing_newer_is_stored",
            "test_f11_a_paused_holders_token_is_saved_if_nothing_newer_is_stored",
        ),
    ),
    36: (
        "One store object serves one event loop after another",
        (
            "test_one_store_object_works_in_several_event_loops_in_turn",
            "test_a_holder_with_a_closed_event_loop_loses_its_claim",
        ),
    ),
    37: (
        "The next writer removes what a killed one left behind, and an abandoned claim leaves nothing",
        (
            "test_an_abandoned_claim_leaves_no_file_behind",
            "test_the_next_writer_removes_what_a_killed_one_left",
            "test_the_temporary_file_of_a_killed_writer_is_removed",
        ),
    ),
    38: (
        "No secret is in a repr, a log line, an error message or a file name",
        (
            "test_data_appears_in_no_repr_error_log_or_file_name",
            "test_a_failed_write_whose_caller_was_cancelled_is_logged",
        ),
    ),
    39: (
        "Encrypted records that were swapped are not accepted, and rotated keys stay readable",
        "not covered, because no store that encrypts ships yet",
    ),
    40: (
        "No optional driver is imported before its store is used",
        ("test_a_driver_is_imported_with_the_first_use_of_its_store",),
    ),
    41: (
        "Closing twice is safe, and leaves no task, thread or descriptor",
        (
            "test_closing_twice_is_safe_and_a_later_call_reopens",
            "test_closing_leaves_no_task_thread_or_descriptor",
        ),
    ),
    42: (
        "A record that was moved to another key is not read",
        (
            "test_a_record_that_was_moved_to_another_key_is_not_read",
            "test_k37_a_database_that_is_moved_over_another_does_not_get_its_log",
        ),
    ),
    43: (
        "A backup that opens, reads and closes the files within the service breaks nothing",
        (
            "test_a_backup_by_the_process_itself_breaks_nothing",
            "test_k34_a_backup_during_a_commit_lets_no_other_process_in",
        ),
    ),
    44: (
        "A second name of the records never leads to a second claim",
        (
            "test_a_second_name_leads_to_no_second_claim",
            "test_k35_a_database_that_is_mounted_by_itself_is_refused",
        ),
    ),
    45: (
        "A store that processes share pickles as its configuration; another one says why it does not",
        (
            "test_a_pickled_store_is_a_new_one_over_the_same_records",
            "test_k46_spawned_processes_use_the_store_that_they_are_given",
        ),
    ),
    46: (
        "No file is touched in the event loop's thread: not to wait, not to close, not for any other call",
        ("test_no_file_is_touched_in_the_event_loops_thread",),
    ),
}
"""Number -> (the property, the names of the tests that show it, or why there is no test)."""
