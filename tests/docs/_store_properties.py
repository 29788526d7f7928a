"""What a store must do, property by property, and the tests that prove it: the source of a table in the docs.

Most of these tests are promises of the conformance suite, so they are run for every store of ours and
for yours; the others are in tests/stores and tests/processes. What is not covered says why.
"""

from __future__ import annotations

__all__ = ["PROPERTIES"]

PROPERTIES: dict[int, tuple[str, tuple[str, ...] | str]] = {
    1: (
        "A writer may be killed at any moment: the old record is there, or the new one",
        (
            "test_a_reader_never_sees_half_a_record_though_writers_are_killed",
            "test_f29_a_writer_killed_at_any_step_leaves_the_old_record_or_the_new_one",
        ),
    ),
    2: ("A reader never sees a torn record", ("test_a_reader_never_sees_a_torn_record",)),
    3: (
        "What has been stored is durable when the call returns",
        (
            "test_what_is_stored_outlives_its_writer",
            "test_f29_a_file_is_synced_before_it_gets_its_name_and_its_name_after",
        ),
    ),
    4: ("One task at a time holds a claim", ("test_one_task_at_a_time_holds_the_claim",)),
    5: (
        "So it is across two store objects in one process",
        ("test_a_claim_excludes_every_other_handle", "test_one_task_at_a_time_holds_the_claim"),
    ),
    6: (
        "So it is across eight processes",
        (
            "test_one_process_at_a_time_holds_the_claim",
            "test_f16_eight_processes_never_hold_one_claim_at_once",
        ),
    ),
    7: (
        "A claim, and those who wait for it, keep nobody from other keys",
        (
            "test_a_claim_keeps_nobody_from_other_keys",
            "test_waiting_for_another_process_blocks_no_event_loop",
        ),
    ),
    8: (
        "The version that was seen decides between a newer record and the claim; None stands for no record",
        (
            "test_seen_decides_between_a_newer_record_and_the_claim",
            "test_a_newer_record_needs_no_claim",
            "test_f08_a_record_is_read_again_under_the_lock",
        ),
    ),
    9: (
        "Waiters do not queue: one commit serves them all, and each needs one look, however many they are",
        (
            "test_all_who_wait_are_served_by_one_commit",
            "test_all_processes_that_wait_are_served_by_one_commit",
            "test_f31_each_of_those_who_wait_needs_one_look_however_many_they_are",
        ),
    ),
    10: (
        "When a holder is killed, the next one gets the claim",
        (
            "test_a_killed_holder_gives_way_and_the_next_one_is_told",
            "test_f14_when_the_holder_is_killed_the_process_that_waits_proceeds",
        ),
    ),
    11: (
        "The next holder is told of a killed one, and of none that committed or abandoned",
        (
            "test_a_killed_holder_gives_way_and_the_next_one_is_told",
            "test_a_clean_end_is_no_interruption",
            "test_a_killed_waiter_held_nothing",
            "test_what_is_stored_outlives_its_writer",
        ),
    ),
    12: (
        "A holder that was stopped and goes on overwrites nothing newer. (No store with leases ships yet: "
        "here a stopped holder keeps its lock, and what is newer comes from a sign-in.)",
        (
            "test_a_paused_holder_overwrites_nothing_newer",
            "test_f11_a_paused_holder_gives_way_to_a_newer_generation",
        ),
    ),
    13: (
        "A late commit is kept if nobody was faster, whatever has become of the claim",
        (
            "test_a_late_commit_is_kept_if_nobody_was_faster",
            "test_a_paused_holder_is_heard_if_nobody_was_faster",
            "test_f12_a_rotated_token_is_saved_although_the_lock_was_lost",
        ),
    ),
    14: (
        "A sign-in or a deletion during a claim wins over its commit",
        (
            "test_a_sign_in_during_a_claim_wins",
            "test_a_deletion_during_a_claim_wins",
            "test_f41_a_late_refresh_does_not_undo_a_sign_out_in_another_process",
        ),
    ),
    15: (
        "A commit whose answer was lost can be made again. (Over a network: when a network store ships.)",
        ("test_a_commit_that_is_made_again_returns_the_same_record",),
    ),
    16: (
        "A claim that is cancelled at any point holds nothing",
        ("test_a_claim_that_is_cancelled_at_any_point_holds_nothing",),
    ),
    17: (
        "A commit whose caller is cancelled is stored, and the claim is free",
        (
            "test_a_commit_whose_caller_is_cancelled_is_stored_and_frees_the_claim",
            "test_an_abandonment_that_is_cancelled_frees_the_claim",
            "test_a_put_whose_caller_is_cancelled_is_done_once_it_began",
        ),
    ),
    18: (
        "An abandoned claim goes to one who waits; to end a claim twice is safe",
        (
            "test_an_abandoned_claim_goes_to_one_who_waits",
            "test_ending_a_claim_twice_is_safe",
            "test_f13_a_holder_releases_only_its_own_lock",
        ),
    ),
    19: (
        "No version is used twice: not after a deletion, not by a store that was opened anew. (Restart of a "
        "server: when a network store ships.)",
        ("test_no_version_is_ever_used_again",),
    ),
    20: (
        "Damaged content is a typed error, and the next put repairs it",
        ("test_damaged_content_is_an_error_and_the_next_put_repairs_it",),
    ),
    21: (
        "Files of a wrong mode, of another owner or behind a link are refused; ours are 0600 under any umask",
        (
            "test_its_files_are_nobody_elses_business",
            "test_a_file_that_others_may_open_is_not_used",
            "test_a_directory_that_others_may_enter_is_not_used",
            "test_a_file_of_somebody_else_is_not_used",
            "test_a_symbolic_link_is_not_followed",
        ),
    ),
    22: (
        "A full disk is known when the claim is made, and a claim has room for its commit",
        (
            "test_a_full_disk_is_known_before_a_grant_is_spent",
            "test_a_claim_has_room_for_its_commit",
            "test_a_write_that_fails_changes_nothing_and_can_be_made_again",
            "test_f29_a_disk_that_cannot_be_written_costs_no_grant",
        ),
    ),
    23: (
        "A read-only place is known when the claim is made",
        (
            "test_a_read_only_place_is_known_before_a_grant_is_spent",
            "test_f29_a_disk_that_cannot_be_written_costs_no_grant",
        ),
    ),
    24: (
        "Every text but the empty one is a key of its own: any script, length, case or reserved name",
        ("test_every_text_but_the_empty_one_is_a_key_of_its_own", "test_an_empty_key_is_refused"),
    ),
    25: (
        "Data is kept from no byte to a mebibyte",
        ("test_data_is_kept_from_no_byte_to_a_mebibyte",),
    ),
    26: (
        "Clocks may jump: no age is negative, and nobody waits for a time in the future",
        (
            "test_a_clock_that_was_reset_makes_an_interruption_old",
            "test_f15_times_that_lie_in_the_future_stop_nobody",
            "test_ages_are_of_the_boot_clock",
        ),
    ),
    27: (
        "Of many who delete at once, one did it, and no other is in trouble",
        ("test_of_many_who_delete_at_once_one_did_it", "test_a_delete_forgets_only_what_it_expects"),
    ),
    28: (
        "Sixteen processes may start at once where there was nothing",
        ("test_sixteen_processes_may_start_at_once",),
    ),
    29: (
        "A child that is forked while a claim is held keeps it from nobody, and may use the store itself",
        (
            "test_a_forked_child_keeps_no_claim_alive",
            "test_a_forked_child_may_use_the_store_it_inherited",
        ),
    ),
    30: (
        "A lock file may be removed while it is locked, and nothing is lost",
        (
            "test_removing_a_lock_file_loses_nothing",
            "test_f12_a_rotated_token_is_saved_although_the_lock_was_lost",
            "test_f13_a_holder_releases_only_its_own_lock",
        ),
    ),
    31: (
        "A hundred keys can be waited for in one process",
        (
            "test_a_hundred_keys_of_others_can_be_waited_for_at_once",
            "test_fifty_keys_can_be_waited_for_at_once",
            "test_f30_two_hundred_who_wait_hold_no_descriptor_and_no_connection",
        ),
    ),
    32: (
        "The backend restarts while somebody waits, holds or commits",
        "not covered, because no store with a server ships yet. A database file that is removed and made "
        "anew under an open store is covered (test_a_database_that_was_removed_or_replaced_is_not_written_"
        "into_the_void).",
    ),
    33: (
        "A backend that hangs is waited for only so long. (Here: a writer that is stuck; a server: when a "
        "network store ships.)",
        (
            "test_a_writer_that_is_stuck_stops_neither_readers_nor_other_keys",
            "test_a_writer_that_is_stuck_stops_no_reader_and_is_waited_for_only_so_long",
            "test_f03_a_store_that_never_answers_is_a_typed_error_in_time",
        ),
    ),
    34: (
        "A wake-up that is lost delays nobody for long: those who wait look for themselves",
        (
            "test_a_commit_is_noticed_though_its_process_is_killed_right_then",
            "test_f31_each_of_those_who_wait_needs_one_look_however_many_they_are",
        ),
    ),
    35: (
        "An event loop that was blocked for long loses nothing. (No lease can run out before a store with "
        "leases ships.)",
        (
            "test_a_holder_whose_event_loop_was_blocked_is_heard_if_nobody_was_faster",
            "test_f11_a_paused_holders_result_is_kept_if_there_is_nothing_newer",
        ),
    ),
    36: (
        "One store object serves one event loop after another",
        (
            "test_one_store_object_serves_one_event_loop_after_another",
            "test_a_holder_whose_event_loop_is_gone_was_interrupted",
        ),
    ),
    37: (
        "What a killed writer leaves lying about is swept by the next",
        (
            "test_what_a_killed_writer_leaves_is_swept_by_the_next",
            "test_an_orphan_of_a_killed_writer_is_swept",
        ),
    ),
    38: (
        "No secret is in a repr, a log line, an error message or a file name",
        (
            "test_nothing_that_is_shown_has_the_data_in_it",
            "test_a_failed_write_whose_caller_has_gone_is_logged",
        ),
    ),
    39: (
        "Encrypted records that were swapped are refused, and rotated keys stay readable",
        "not covered, because no store that encrypts ships yet",
    ),
    40: (
        "No optional driver is imported before its store is mentioned",
        ("test_a_driver_is_loaded_when_its_store_is_mentioned",),
    ),
    41: (
        "Closing twice is safe, and leaves no task, no thread and no handle",
        (
            "test_closing_twice_is_safe_and_a_later_call_reopens",
            "test_closing_leaves_no_task_no_thread_and_no_handle",
        ),
    ),
}
"""Number -> (the property, the names of the tests that prove it, or why there is none)."""
