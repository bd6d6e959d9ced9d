"""The faults and attacks that must be held, and the tests that try each one."""

from __future__ import annotations

from dataclasses import dataclass

_P2P = "tests/p2p/test_"
_LIVE = "tests/live/test_"
_OURS = "tests/faults/test_"


@dataclass(frozen=True)
class Row:
    """One fault or attack."""

    number: int
    what: str
    figure: str
    """What must come out."""
    tests: tuple[str, ...]
    """Node ids without parameters: `file::test`."""


def _in(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}.py::test_{name}" for name in names)


_STRANGERS = _in(
    f"{_OURS}strangers",
    "handshakes_with_a_wrong_token",
    "no_client_certificate",
    "old_tls_http_and_bare_rpc",
    "silent_connections",
    "a_client_hello_at_a_byte_a_second",
    "random_and_mutated_first_records",
    "frames_without_end",
)
"""Rows 1 to 7, in order."""

ROWS = (
    Row(1, "handshakes with a wrong token", "0 of 10,000 accepted, no byte to rpc-server", _STRANGERS[:1]),
    Row(2, "no client certificate", "0 of 1,000 accepted", _STRANGERS[1:2]),
    Row(3, "TLS 1.2, plain HTTP, plain RPC", "0 accepted", _STRANGERS[2:3]),
    Row(4, "500 silent connections", "heads served, p99 < 2 x B", _STRANGERS[3:4]),
    Row(5, "ClientHello at a byte a second", "cut off within 5 s", _STRANGERS[4:5]),
    Row(6, "100,000 random and mutated first records", "no crash, 0 tracebacks", _STRANGERS[5:6]),
    Row(
        7,
        "frames too long or without end",
        "cut off, <= 64 KiB held a connection",
        _STRANGERS[6:7] + _in(f"{_P2P}channel", "little_is_taken_from_a_client_that_has_not_proved_itself"),
    ),
    Row(
        8,
        "memory and descriptors after rows 1 to 7",
        "< 20 MB more, descriptors as before",
        _STRANGERS + _in(f"{_OURS}strangers", "everything_is_back_afterwards"),
    ),
    Row(
        9, "out of descriptors (limit 64)", "served again within 5 s",
        _in(f"{_OURS}strangers", "out_of_file_descriptors"),
    ),
    Row(
        10, "one source floods", "0 failures for others",
        _in(f"{_OURS}strangers", "one_source_that_floods")
        + _in(f"{_P2P}gate", "a_source_that_floods_drives_out_itself"),
    ),
    Row(
        11, "1,000 connections aborted in mid-handshake", "full capacity afterwards",
        _in(f"{_OURS}strangers", "aborted_in_mid_handshake"),
    ),
    Row(
        12, "wrong token on the head's side", "told, no tunnel, 100 of 100",
        _in(f"{_OURS}tokens", "wrong_token_on_the_heads_side"),
    ),
    Row(
        13, "the worker's certificate played back, wrong key usage, a leaf that signs, the CA as a leaf", "0 accepted",
        _in(
            f"{_P2P}identity",
            "a_certificate_played_back_to_its_owner_is_refused",
            "the_wrong_key_usage_is_refused_both_ways",
            "a_leaf_cannot_sign_a_leaf",
            "the_ca_is_no_leaf",
            "a_certificate_that_a_member_should_never_show_is_refused",
        ),
    ),
    Row(
        14, "clock at 1970 and 2099", "all connect",
        _in(f"{_OURS}tokens", "any_clock") + _in(f"{_P2P}identity", "no_date_matters"),
    ),
    Row(
        15, "saved session ticket offered", "0 resumed",
        _in(f"{_OURS}tokens", "a_saved_session") + _in(f"{_P2P}identity", "no_session_is_ever_resumed"),
    ),
    Row(16, "recorded handshake replayed", "0 of 1,000 accepted", _in(f"{_OURS}tokens", "a_recorded_handshake")),
    Row(
        17, "a flipped bit, a stream cut without close", "an error, nothing wrong passed on",
        _in(f"{_OURS}streams", "damaged_streams")
        + _in(f"{_P2P}channel", "a_flipped_bit_is_an_error_and_no_wrong_byte_comes_out", "a_cut_is_not_an_end"),
    ),
    Row(
        18, "two genuine workers whose announcements are swapped", "identity is what TLS proved",
        _in(f"{_P2P}roster", "swapped_announcements_lead_to_who_tls_proves")
        + _in(f"{_P2P}tunnel", "another_process_in_the_workers_place_gets_nothing"),
    ),
    Row(
        19, "weak, mistyped, empty, huge, binary tokens", "each its own error",
        _in(f"{_OURS}tokens", "tokens_that_are_none")
        + _in(
            f"{_P2P}token",
            "each_unusable_token_has_an_error_of_its_own",
            "every_slip_of_one_character_is_told_as_a_mistyped_token",
        ),
    ),
    Row(
        20, "the token in logs, announcements, core files, the server's environment, argv",
        "0 hits; a warning for a flag",
        _in(f"{_OURS}tokens", "the_token_is_in_no_log_core_or_command_line", "a_flag_is_warned_of")
        + _in(f"{_LIVE}p2p", "the_server_is_out_of_reach_and_the_wire_tells_nothing")
        + _in(f"{_P2P}discovery", "an_announcement_says_four_things_their_proof_and_not_the_machine_s_name"),
    ),
    Row(21, "1 GiB each way", "SHA-256 equal", _in(f"{_OURS}streams", "a_gibibyte_each_way")),
    Row(
        22, "a peer that stops reading: server 60 s, head 25 s", "<= 1 MiB buffered, the first not cut",
        _in(f"{_OURS}streams", "a_server_that_computes_for_a_minute", "a_head_that_does_not_read")
        + _in(f"{_P2P}pump", "who_does_not_read_holds_up_who_sends_and_little_is_stored"),
    ),
    Row(
        23, "the head vanishes (link down)", "slot free within 30 s",
        _in(f"{_OURS}leases", "a_head_that_loses_its_link"),
    ),
    Row(
        24, "a second head, also in the gaps of the first", "told busy, by whom; 0 refusals for the first",
        _in(
            f"{_LIVE}p2p",
            "a_second_head_is_told_who_is_in_the_way_and_served_afterwards",
            "the_lease_against_real_clients",
        )
        + _in(f"{_P2P}relay", "a_second_head_is_told_busy_and_served_when_the_first_has_left"),
    ),
    Row(
        25, "the same head again at once, overlapping, killed in mid-prompt", "100 of 100, ready within 5 s",
        _in(f"{_OURS}leases", "the_same_head_again_at_once", "a_prompt_killed_midway"),
    ),
    Row(
        26, "rpc-server killed", "first start <= 1 s, cap 30 s, announcement withdrawn",
        _in(f"{_OURS}servers", "a_killed_server")
        + _in(f"{_P2P}supervisor", "crashes_in_a_row_are_spread_out_and_a_steady_time_forgives_them"),
    ),
    Row(
        27, "rpc-server ends at once, also with status 0", "given up after 5 starts, last lines, code 7",
        _in(f"{_LIVE}p2p", "a_server_that_never_starts_is_given_up_with_its_last_lines")
        + _in(f"{_P2P}supervisor", "a_server_that_ends_at_once_is_given_up_with_its_last_lines"),
    ),
    Row(
        28, "rpc-server hangs, before it answers or after a lease", "found in 3 s, restarted",
        _in(f"{_OURS}leases", "a_server_that_hangs_after_a_lease", "a_server_that_hangs_while_its_head_stays")
        + _in(f"{_P2P}supervisor", "a_server_that_hangs_is_killed_when_its_time_is_up"),
    ),
    Row(
        29, "kill -9 on what the user started, in every command", "no orphan, no listener within 1 s",
        _in(f"{_OURS}servers", "kill_9")
        + _in(f"{_LIVE}llama_cpp_rpc", "killing_what_was_started_ends_the_server")
        + _in(f"{_LIVE}assets", "killed_while_the_interpreter_starts"),
    ),
    Row(30, "SIGTERM, SIGINT", "goodbye, exit 0, all gone within 5 s", _in(f"{_OURS}servers", "an_orderly_end")),
    Row(
        31, "the port is taken before the server has it", "another port; never a stranger's",
        _in(f"{_P2P}supervisor", "a_port_taken_at_the_last_moment_is_left_for_another")
        + _in(
            f"{_P2P}keeper",
            "a_port_that_a_stranger_holds_is_never_taken_for_ours",
            "a_port_that_is_taken_is_an_error_before_the_start",
        )
        + _in(f"{_LIVE}llama_cpp_rpc", "a_taken_port_is_told"),
    ),
    Row(
        32, "another user at the server or a tunnel; one that has gone; IPv4 in IPv6", "0 of 100, not a byte",
        _in(f"{_OURS}local_users", "another_user_at_a_tunnel")
        + _in(
            f"{_P2P}local_client",
            "another_user_is_refused_also_when_gone",
            "who_has_closed_already_has_no_owner_and_is_refused",
        )
        + _in(f"{_P2P}keeper", "in_the_sandbox_only_the_keeper_reaches_the_server"),
    ),
    Row(
        33, "symlink on the assets path; hard link, FIFO, directory in a file's place", "refused, 0 writes, no hang",
        _in("tests/test_payload", "a_symbolic_link_on_the_way_is_refused", "damage_is_set_aside_and_never_used"),
    ),
    Row(
        34, "assets directory of another user, or open to others", "refused, or the fall-back",
        _in(
            "tests/test_payload",
            "a_directory_of_another_user_is_refused",
            "a_directory_open_to_others_is_refused",
            "the_default_falls_back_and_says_so",
        )
        + _in(f"{_LIVE}assets", "a_foreign_default_falls_back"),
    ),
    Row(
        35, "files changed, added, missing; another user racing 1,000 starts", "never executed",
        _in(f"{_OURS}local_users", "another_user_races_the_start")
        + _in("tests/test_payload", "damage_is_set_aside_and_never_used", "a_file_of_another_user_is_not_used"),
    ),
    Row(
        36, "noexec, read-only, full disk", "one clear error, 0 leftovers",
        _in("tests/test_payload", "a_file_system_that_cannot_hold_it", "the_default_falls_back_and_says_so"),
    ),
    Row(37, "50 starts at once on an empty directory", "50 of 50 run", _in(f"{_LIVE}assets", "fifty_starts_at_once")),
    Row(
        38, "killed in mid-unpacking, 100 times", "the next start works",
        _in(f"{_LIVE}assets", "killed_in_mid_unpacking"),
    ),
    Row(
        39, "planted libraries: working directory, beside the server, foreign lib, LD_LIBRARY_PATH", "0 loaded",
        _in(f"{_LIVE}llama_cpp_rpc", "no_planted_library_is_loaded")
        + _in("tests/test_launch", "a_library_directory_that_others_can_write_is_left_out"),
    ),
    Row(
        40, "LD_LIBRARY_PATH of the user", "reaches the server, ours appended",
        _in(f"{_LIVE}llama_cpp_rpc", "the_server_sees_the_users_environment")
        + _in("tests/test_launch", "the_library_path_is_as_the_user_had_it", "our_libraries_come_after_the_users"),
    ),
    Row(
        41, "leftovers of killed launchers", "one directory each, pruned",
        _in(f"{_LIVE}assets", "leftovers_of_killed_launchers_are_pruned"),
    ),
    Row(
        42, "10,000 invented announcements, off-link ones too", "<= 8 dials at once, 0 off-link; 0 for a stranger",
        _in(f"{_OURS}lan", "invented_announcements", "forged_announcements")
        + _in(
            f"{_P2P}discovery",
            "what_a_member_invents_is_not_all_stored_and_does_not_hide_a_genuine_worker",
            "a_flood_of_a_stranger_is_no_sighting_and_hides_no_genuine_worker",
            "only_addresses_on_our_links_are_handed_out",
        ),
    ),
    Row(43, "forged goodbye", "0 tunnels dropped", _in(f"{_OURS}lan", "a_forged_goodbye")),
    Row(
        44, "two workers of one name, of one id; two on one box; no machine id", "found, kept apart, warned of",
        _in(f"{_LIVE}p2p", "two_instances_and_a_cloned_image_are_kept_apart")
        + _in(f"{_P2P}roster", "clones_are_two_workers_with_one_warning", "two_workers_of_one_name_are_told_of")
        + _in(f"{_P2P}worker_id", "where_nothing_can_be_kept_it_is_derived_and_said"),
    ),
    Row(
        45, "interface down and up, new address", "found within 10 s",
        _in(f"{_OURS}lan", "a_new_address")
        + _in(f"{_P2P}discovery", "a_link_that_goes_down_and_comes_back_with_a_new_address"),
    ),
    Row(
        46, "port 5353 taken, no multicast, no network", "warned, static peers work",
        _in(f"{_OURS}lan", "without_mdns"),
    ),
    Row(47, "IPv6 link-local only", "connects", _in(f"{_OURS}lan", "link_local_ipv6_alone")),
    Row(48, "idle for ten minutes", "< 0.5 % of a core", _in(f"{_OURS}lan", "idle")),
    Row(49, "200 workers on one link", "listed within 5 s, head < 150 MB", _in(f"{_OURS}lan", "a_crowd")),
    Row(
        50, "odd and long arguments, unknown flags", "passed on exactly, or one error",
        _in(f"{_OURS}arguments", "odd_arguments", "unknown_arguments")
        + _in(f"{_LIVE}llama_cpp_rpc", "arguments_reach_the_server"),
    ),
    Row(
        51, "files deleted under a running worker, then a crash", "unpacked and served again",
        _in(f"{_OURS}servers", "the_files_go_and_then_the_server"),
    ),
    Row(
        52, "three and four workers under one head", "the tokens of as many bare servers",
        _in(f"{_LIVE}p2p", "a_model_split_over_several_machines"),
    ),
    Row(
        53, "no namespaces (container, AppArmor)", "auto warns, on refuses with the reason",
        _in(f"{_OURS}local_users", "no_namespaces")
        + _in(f"{_P2P}keeper", "a_machine_that_forbids_namespaces"),
    ),
    Row(
        54, "a cache file cut short by a kill or a full disk", "thrown away, tokens right",
        _in(f"{_OURS}servers", "a_cut_cache_file")
        + _in(
            f"{_P2P}server_cache",
            "a_server_that_died_in_mid_write",
            "a_worker_that_was_killed",
            "a_disk_without_room_may_have_cut_it_short",
        )
        + _in(f"{_LIVE}cache", "killed_in_mid_upload", "what_is_whole_outlives_a_kill"),
    ),
)  # fmt: skip
