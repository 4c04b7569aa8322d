"""What broke other gateways, and which tests show that it does not break this one.

The table is checked against the tests themselves, so that it cannot name one that is gone.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

DOOR, SMUGGLING = "system/test_door.py", "system/test_smuggling.py"
WORK, PAGES = "system/test_work.py", "system/test_pages.py"
TICKETS, APP = "system/test_tickets.py", "edge/http/test_pipeline.py"
HEADS, ORIGIN = "routing/test_heads.py", "auth/test_origin.py"
FRAMES, CONNECTIONS = "edge/websocket/test_client_frames.py", "test_connections.py"
TOKENS, WHO_MAY = "system/test_tokens.py", "system/test_who_may.py"
JWT, JWKS, KEYS = "auth/test_jwt.py", "auth/test_jwks.py", "edge/authn/test_jwks_client.py"
TICKETS_UNIT, STARTS = "auth/test_tickets.py", "agent/api/test_start_request.py"

THREATS: Final = {
    # CVE-2024-28179: HTTP was checked, the WebSocket was not.
    "a WebSocket's path skips authentication": [
        f"{DOOR}::test_nobody_comes_in_without_a_token",
        f"{PAGES}::test_whose_websocket_opens",
    ],
    # An empty EG_AUTH_TOKEN let everybody in.
    "authentication is off by default": [
        f"{APP}::test_nobody_unknown_comes_in",
        "cli/test_check_config.py::test_an_edge_that_nobody_could_enter_is_refused",
        "cli/test_check_config.py::test_no_option_lets_everybody_in",
        "cli/test_check_config.py::test_no_setting_lets_everybody_in",
    ],
    # Compared byte by byte, the query before the header, OPTIONS not at all.
    "tokens are compared badly": [
        f"{DOOR}::test_nobody_comes_in_without_a_token",
        f"{DOOR}::test_no_method_is_exempt",
        f"{APP}::test_nobody_else_asks_anything_by_options",
        f"{DOOR}::test_credentials_that_disagree_open_none",
        "auth/test_tokens.py::test_every_record_is_compared_in_constant_time",
        f"{SMUGGLING}::test_two_credentials_are_none",
    ],
    "one request's credential serves the next": [
        f"{DOOR}::test_each_request_of_a_connection_is_judged_alone",
        f"{SMUGGLING}::test_each_request_is_judged_alone",
        f"{SMUGGLING}::test_a_refused_requests_body_is_no_request",
    ],
    # CVE-2026-40110, CVE-2026-35397, CVE-2024-53861: match, startswith, in.
    "a prefix or a pattern is enough": [
        f"{ORIGIN}::test_everything_else_is_foreign",
        f"{ORIGIN}::test_no_text_is_of_a_list_that_does_not_have_it",
        f"{DOOR}::test_an_unknown_cluster",
    ],
    # CVE-2025-66490, CVE-2026-48020, GHSA-6jwx-7vp4-9847.
    "a path is judged in one form and used in another": [
        f"{DOOR}::test_a_target_that_could_be_read_in_two_ways",
        f"{SMUGGLING}::test_the_path_that_was_judged_is_the_path_that_is_asked_for",
    ],
    # GHSA-7rh7-c77v-6434, CVE-2026-41059, CVE-2026-40575.
    "something beside method and path decides": [
        f"{SMUGGLING}::test_no_header_says_who_it_is",
        f"{SMUGGLING}::test_no_query_says_who_it_is",
        f"{DOOR}::test_a_target_that_could_be_read_in_two_ways",
    ],
    # CVE-2025-64484, GHSA-7r4p-vjf4-gxv4, GHSA-5m6w-wvh7-57vm.
    "a header says who it is": [
        f"{SMUGGLING}::test_no_header_says_who_it_is",
        f"{TICKETS}::test_an_agent_receives_the_ticket_and_never_the_token",
        f"{TICKETS}::test_who_it_is_the_ticket_says",
    ],
    # CVE-2024-45410, CVE-2025-48865.
    "Connection takes a header away": [f"{SMUGGLING}::test_connection_takes_nothing_away"],
    # CVE-2023-47641, CVE-2023-37276, CVE-2024-52304, CVE-2025-53643, CVE-2025-69224,
    # CVE-2026-69243.
    "a request is smuggled in another": [
        f"{SMUGGLING}::test_what_could_be_cut_in_two_ways",
        f"{SMUGGLING}::test_a_strange_request_line",
        f"{SMUGGLING}::test_a_strange_host",
        f"{SMUGGLING}::test_nothing_is_smuggled",
        f"{DOOR}::test_nothing_is_smuggled_in_behind_a_handshake",
        f"{HEADS}::test_a_body_whose_length_could_be_read_in_two_ways",
        f"{HEADS}::test_nothing_lies_between_a_head_and_another_protocol",
    ],
    # CVE-2025-69223, CVE-2026-59881.
    "something small unpacks to something large": [
        f"{SMUGGLING}::test_a_compressed_body",
        f"{DOOR}::test_compression_is_not_agreed_to",
        f"{WORK}::test_a_bad_frame_ends_the_websocket",
    ],
    # CVE-2025-69229.
    "a byte makes work for thousands": [
        f"{WORK}::test_a_body_in_chunks_of_one_byte",
        f"{WORK}::test_a_chunk_whose_extension_never_ends",
        f"{WORK}::test_trailers_without_end",
        f"{WORK}::test_a_body_that_is_no_request",
        f"{WORK}::test_a_flood_of_frames",
        f"{FRAMES}::test_tiny_fragments_cost_no_more_than_what_they_hold",
    ],
    "frames that are not masked": [
        f"{DOOR}::test_an_unmasked_frame_ends_the_websocket",
        "system/test_autobahn.py::test_every_case_of_a_group",
    ],
    # CVE-2026-40864, CVE-2024-28233.
    "a page in a browser acts for its user": [
        f"{PAGES}::test_a_foreign_page_reads_and_opens_nothing",
        f"{PAGES}::test_whose_websocket_opens",
        f"{APP}::test_a_foreign_page_opens_and_changes_nothing",
        f"{APP}::test_what_else_browsers_say_changes_nothing",
        f"{PAGES}::test_a_preflight_tells_the_same_of_everything",
    ],
    "counts on the wire are believed": [
        f"{WORK}::test_counts_that_lie_end_the_websocket",
        f"{WORK}::test_a_bad_frame_ends_the_websocket",
    ],
    "starts at once share what is theirs alone": [f"{WORK}::test_starts_at_once_do_not_mix"],
    # CVE-2025-49825: an agent that believes somebody else than its edge.
    "an agent trusts a stranger": [
        f"{TICKETS}::test_nothing_is_done_without_a_ticket_of_the_edge",
        f"{TICKETS}::test_a_ticket_is_for_one_action_on_one_kernel",
        f"{TICKETS}::test_forgeries",
    ],
    # GHSA-p737-p57g-4cpr, h56g-gq9v-vc8r, CVE-2026-54338.
    "logs and errors tell secrets": [
        f"{TICKETS}::test_the_token_is_written_down_nowhere",
        f"{DOOR}::test_what_is_not_http_is_refused_and_not_quoted",
        f"{SMUGGLING}::test_the_edge_says_the_same_of_itself_everywhere",
        f"{CONNECTIONS}::test_no_answer_names_a_library",
        f"{CONNECTIONS}::test_an_error_nobody_foresaw_is_told_without_its_text",
    ],
    # CVE-2020-26232, CVE-2026-33709, GHSA-r726-vmfq-j9j3.
    "a redirect leads elsewhere": [f"{WORK}::test_nobody_is_sent_elsewhere"],
    # CVE-2026-40934: what was reset went on to work.
    "a credential outlives its end": [
        f"{TOKENS}::test_a_new_token_works_and_its_revocation_ends_what_it_opened",
        f"{TOKENS}::test_a_websocket_ends_when_its_token_expires",
        f"{TOKENS}::test_a_followed_answer_ends_with_its_token",
        "system/test_certificates.py::test_what_a_certificate_opened_ends_with_it",
        "system/test_jupyterhub.py::test_open_websockets_end_with_the_token_that_opened_them",
        "system/test_jupyterhub.py::test_a_token_that_the_hub_revokes_is_refused_when_the_cache_ends",
    ],
    # CVE-2022-29217, GHSA-xgmm-8j9v-c9wx, GHSA-jq35-7prp-9v3f.
    "a JWT chooses how it is checked": [
        f"{JWT}::test_the_algorithm_is_the_configured_one_exactly",
        f"{JWT}::test_an_issuer_with_secrets_takes_no_public_keys_token_and_the_other_way_round",
        f"{JWKS}::test_a_public_key_is_no_secret_whatever_a_token_says",
        f"{JWKS}::test_another_keys_text_is_no_secret",
        f"{TICKETS_UNIT}::test_hmac_keyed_with_the_public_key",
    ],
    # GHSA-993g-76c3-p5m4: keys from wherever a token says, from file:// too.
    "a JWT brings its keys": [
        f"{JWT}::test_keys_in_the_header_are_not_looked_at",
        f"{KEYS}::test_discovery_leads_to_https_only",
        f"{KEYS}::test_redirects_are_not_followed",
        f"{KEYS}::test_a_document_of_another_issuer_is_not_believed",
    ],
    # CVE-2026-32597, GHSA-w7vc-732c-9m39, and signatures with padding.
    "a JWT is read in another way than it was signed": [
        f"{JWT}::test_extensions_are_refused",
        f"{JWT}::test_a_detached_payload_is_refused",
        f"{JWT}::test_a_token_has_one_spelling",
        "auth/test_base64url.py::test_no_second_spelling_is",
    ],
    # GHSA-fhv5-28vv-h8m8: a fetch that failed took the keys away.
    "an issuer's outage, or a flood of unknown keys": [
        f"{KEYS}::test_a_fetch_that_fails_takes_nothing_away",
        f"{KEYS}::test_a_flood_of_unknown_keys_makes_one_fetch_for_each_cool_down",
        "system/test_oidc.py::test_a_flood_of_unknown_keys_is_no_flood_at_the_provider",
        "system/test_oidc.py::test_an_outage_is_not_noticed",
    ],
    "a JWT's times are missing or no numbers": [
        f"{JWT}::test_exp_is_needed_whatever_is_required",
        f"{JWT}::test_a_time_is_a_number",
        f"{JWT}::test_a_time_is_finite",
    ],
    # CVE-2026-26007: curves on which a signature says nothing.
    "a key that is weak or of a strange kind": [
        f"{JWKS}::test_another_curve_or_kind_of_key_is_an_error",
        f"{JWKS}::test_what_is_not_one_public_key_in_pem_is_an_error",
        f"{JWKS}::test_a_weak_rsa_key_is_skipped",
        f"{KEYS}::test_a_wrong_pem_or_secret_is_an_error_that_names_it",
        "cli/checks/test_files.py::test_weak_keys",
        "cli/checks/test_files.py::test_a_key_that_no_library_knows",
    ],
    "the weaker of two parsers serves": [
        "cli/test_edge.py::test_the_weak_parser_is_refused",
    ],
    # CVE-2026-44180, CVE-2026-44181, CVE-2026-44182, 83f54a88: Jinja, YAML, a shell.
    "a variable becomes code": [
        f"{STARTS}::test_a_malformed_name_is_refused",
        f"{STARTS}::test_values_are_passed_as_they_are",
        f"{STARTS}::test_a_value_that_is_too_long_is_refused_by_its_setting",
        f"{STARTS}::test_no_client_says_who_it_is",
        f"{WHO_MAY}::test_nothing_in_a_value_is_anything_but_the_value",
        "agent/privsep/test_os_users.py::test_no_map_makes_a_principal_root_or_the_agent",
    ],
    # An open port for kernels' answers, without a MAC that holds.
    "somebody else speaks for a kernel": [
        "bridge/test_zmq_codec.py::test_a_missing_or_foreign_signature_is_refused",
        "bridge/test_zmq_codec.py::test_a_change_of_any_signed_byte_is_refused",
        "bridge/test_session.py::test_what_answers_nobody_is_discarded_and_takes_no_seq",
        "agent/holders/test_client.py::test_another_users_process_gets_not_a_byte",
        "system/test_launch_as.py::test_a_kernels_ports_are_of_no_use_to_others",
    ],
    # A kernel takes the agent's port while it is free, and uses the tickets that it gets.
    "somebody else speaks for an agent": [
        "system/test_launch_as.py::test_a_kernel_in_the_agents_place_gets_nobodys_ticket",
        "cli/test_agent.py::test_os_users_behind_a_plain_listener_are_refused",
        "cli/checks/test_across_files.py::test_os_users_behind_a_plain_address_are_refused",
    ],
    # CVE-2023-33189, GHSA-r7rh-jww5-5fjr, CVE-2024-41942.
    "a user reaches another's kernel": [
        f"{WHO_MAY}::test_the_table",
        f"{WHO_MAY}::test_lists",
        f"{WHO_MAY}::test_channels",
        "auth/test_ownership.py::test_strangers_hear_the_words_of_a_kernel_that_is_not_there",
    ],
    # CVE-2026-25949, slowloris.
    "a client stalls": [
        "edge/listener/test_acceptor.py::test_a_handshake_that_fails_or_stalls_is_counted_no_longer",
        f"{CONNECTIONS}::test_a_head_has_an_absolute_time",
        f"{CONNECTIONS}::test_a_body_has_an_absolute_time",
        f"{CONNECTIONS}::test_who_does_not_read_is_cut_off",
        "system/test_storm.py::test_the_good_client_hardly_notices",
    ],
    "sockets leak": [f"{WORK}::test_nothing_is_left_of_five_hundred_connections"],
}


@pytest.mark.parametrize("threat", THREATS)
def test_a_threat_has_tests(threat: str) -> None:
    assert THREATS[threat]
    for test in THREATS[threat]:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        assert name in {node.name for node in tree.body if isinstance(node, kinds)}, test
