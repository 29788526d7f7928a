"""`FACTS`: what is known about each vendor of `VENDORS`, and how.

*Documented* by the vendor, *seen* in public reports about the same server, or *inferred* from the two. The
table at the end of docs/reference/providers.md is written from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .vendor import Fact

__all__ = ["FACTS"]

_ATLASSIAN = "developer.atlassian.com/cloud/oauth/getting-started/refresh-tokens"
_ATLASSIAN_ROTATION = (
    "community.developer.atlassian.com/t"
    "/updated-31-january-2022-action-required-deprecating-persistent-refresh-tokens/54172"
)
_GITHUB = (
    "docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app"
    "/refreshing-user-access-tokens"
)
_GITHUB_ERRORS = (
    "docs.github.com/apps/managing-oauth-apps/troubleshooting-oauth-app-access-token-request-errors"
)
_HUBSPOT = "developers.hubspot.com/docs/api-reference/legacy/authentication/oauth-tokens/v1/migration-guide"
_HUBSPOT_ERRORS = (
    "developers.hubspot.com/changelog/new-oauth-v3-api-endpoints-and-standardized-error-responses"
)
_INTUIT = "developer.intuit.com/app/developer/qbo/docs/develop/authentication-and-authorization/faq"
_INTUIT_SDK = "github.com/intuit/oauth-jsclient"
_NETATMO = "github.com/philippelt/netatmo-api-python/issues/82"
_NOTION = "developers.notion.com/reference/refresh-a-token"
_SALESFORCE = (
    "developer.salesforce.com/docs/atlas.en-us.218.0.api_rest.meta/api_rest"
    "/intro_understanding_refresh_token_oauth.htm"
)
_SALESFORCE_HOSTS = (
    "developer.salesforce.com/docs/atlas.en-us.222.0.api_rest.meta/api"
    "/intro_understanding_oauth_endpoints.htm"
)
_SLACK = "docs.slack.dev/authentication/using-token-rotation"
_SLACK_METHOD = "docs.slack.dev/reference/methods/oauth.v2.access"
_SLACK_ERRORS = "api.slack.com/methods/oauth.v2.exchange"
_SQUARE = "developer.squareup.com/reference/square/oauth-api/obtain-token"
_SQUARE_TOKEN = "developer.squareup.com/reference/square/objects/ObtainTokenResponse"
_STRAVA = "developers.strava.com/docs/authentication"
_XERO = "developer.xero.com/faq/oauth2"
_ZOHO = "zoho.com/bookings/help/api/v1/refreshaccesstoken.html"

FACTS: Mapping[str, tuple[Fact, ...]] = MappingProxyType(
    {
        "atlassian": (
            Fact("a JSON body, with the client's credentials in it", "documented", _ATLASSIAN),
            Fact("a refresh returns a new refresh token", "documented", _ATLASSIAN),
            Fact("the old one works for 10 minutes more", "documented", _ATLASSIAN_ROTATION),
            Fact(
                "a refresh token ends after 90 days without use, and a sign-in after a year",
                "documented",
                _ATLASSIAN_ROTATION,
            ),
            Fact("403 with `invalid_grant` for a dead refresh token", "documented", _ATLASSIAN),
            Fact(
                "and sometimes `refresh_token is invalid`",
                "seen",
                "github.com/ParabolInc/parabol/issues/11849",
            ),
            Fact("with the code `unauthorized_client`, which counts as a probable rejection", "inferred"),
        ),
        "github": (
            Fact("JSON only if `Accept` asks for it", "documented", _GITHUB_ERRORS),
            Fact("8 hours; a refresh token lives six months", "documented", _GITHUB),
            Fact(
                "a refresh ends the old refresh token, and the old access token too",
                "documented",
                _GITHUB,
            ),
            Fact(
                "`bad_verification_code` for a dead code, `incorrect_client_credentials`, "
                "`redirect_uri_mismatch`",
                "documented",
                _GITHUB_ERRORS,
            ),
            Fact(
                "200 with `bad_refresh_token` for a dead refresh token",
                "seen",
                "github.com/interlink-hq/interLink/pull/262",
            ),
        ),
        "hubspot": (
            Fact(
                "`/oauth/2026-03/token`; the address before it, `/oauth/v1/token`, ends on 2027-02-16",
                "documented",
                _HUBSPOT,
            ),
            Fact(
                "a form, with the client's credentials in it",
                "documented",
                "developers.hubspot.com/docs/api-reference/auth-oauth-v3/guide",
            ),
            Fact(
                "30 minutes",
                "documented",
                "developers.hubspot.com/docs/methods/oauth2/refresh-access-token",
            ),
            Fact(
                '`status: "BAD_REFRESH_TOKEN"` for a dead refresh token, beside `invalid_grant`',
                "documented",
                _HUBSPOT_ERRORS,
            ),
            Fact("whether refresh tokens rotate is not said: so we assume that they do", "inferred"),
        ),
        "intuit": (
            Fact(
                "one token URL for both environments; credentials in the header or in the body",
                "documented",
                "developer.intuit.com/.well-known/openid-sandbox-configuration",
            ),
            Fact(
                "the API's address differs in the sandbox",
                "documented",
                "developer.intuit.com/app/developer/qbo/docs/learn/rest-api-features",
            ),
            Fact("one hour; always refresh with the latest refresh token", "documented", _INTUIT),
            Fact(
                "an older one ends as soon as there is a newer one: `invalid_grant`",
                "seen",
                "github.com/intuit/QuickBooks-V3-PHP-SDK/issues/324",
            ),
            Fact("or 24 hours later, says another page: so we assume no leeway", "documented", _INTUIT_SDK),
            Fact(
                "a refresh token lives 100 days from its last use",
                "documented",
                "blogs.intuit.com/2024/06/03/oauth-token-management-done-the-right-way",
            ),
            Fact(
                "and five years at most",
                "documented",
                "blogs.a.intuit.com/2025/11/12/important-changes-to-refresh-token-policy",
            ),
            Fact(
                "the response has the seconds that are left in `x_refresh_token_expires_in`",
                "documented",
                _INTUIT_SDK,
            ),
        ),
        "netatmo": (
            Fact(
                "a form, with the client's credentials in it",
                "seen",
                "github.com/philippelt/netatmo-api-python/issues/73",
            ),
            Fact("a refresh ends the old access token and the old refresh token", "seen", _NETATMO),
            Fact("`invalid_grant` for a dead refresh token", "seen", _NETATMO),
            Fact(
                "the API answers 403 to an expired token",
                "seen",
                "github.com/xperimental/netatmo-exporter/issues/55",
            ),
            Fact(
                "and to a missing scope: so such a request costs a refresh, and fails",
                "seen",
                "github.com/xperimental/netatmo-exporter/issues/60",
            ),
        ),
        "notion": (
            Fact("a JSON body, Basic credentials, and a `Notion-Version`", "documented", _NOTION),
            Fact(
                "API requests need a `Notion-Version` too: it is a header of your session",
                "documented",
                "developers.notion.com/reference/versioning",
            ),
            Fact("a refresh returns a new refresh token", "documented", _NOTION),
            Fact("and ends the old one", "seen", "docs.alterauth.com/providers/notion"),
            Fact("no lifetime in the response: refreshed after a 401", "documented", _NOTION),
            Fact(
                "an error has its code in `code`",
                "documented",
                "developers.notion.com/reference/create-a-token",
            ),
            Fact(
                "or in `error`",
                "seen",
                "nango.dev/blog/notion-oauth-refresh-token-invalid-grant",
            ),
        ),
        "salesforce": (
            Fact("`test.salesforce.com` for a sandbox", "documented", _SALESFORCE_HOSTS),
            Fact("a form, with the client's credentials in it", "documented", _SALESFORCE),
            Fact(
                "no lifetime in the response, because administrators set it: refreshed after a 401",
                "documented",
                _SALESFORCE,
            ),
            Fact(
                "the API's address is `instance_url` of the response, and so in `token.extra`: "
                "pass it as `base_url`",
                "documented",
                _SALESFORCE,
            ),
            Fact(
                "administrators can turn rotation on: so we assume that they have",
                "documented",
                "help.salesforce.com/apex/HTViewHelpDoc?id=remoteaccess_oauth_refresh_token_flow.htm",
            ),
        ),
        "slack": (
            Fact("a form; Basic credentials are recommended", "documented", _SLACK_METHOD),
            Fact(
                "12 hours; the refresh token is revoked when it is used, and a new one comes",
                "documented",
                _SLACK,
            ),
            Fact("`ok: false` and `error`; always check `ok`", "documented", _SLACK_ERRORS),
            Fact(
                "with status 200: so a request of yours with an expired token is not sent again",
                "inferred",
            ),
            Fact(
                "`bad_client_secret`, `invalid_client_id`, `internal_error`, `fatal_error`",
                "documented",
                _SLACK_ERRORS,
            ),
            Fact(
                "`invalid_refresh_token` for a dead refresh token",
                "seen",
                "github.com/CogniQ/CogniQ/issues/72",
            ),
            Fact(
                "`ratelimited`, with a `Retry-After`",
                "seen",
                "github.com/slackapi/python-slack-sdk/issues/805",
            ),
            Fact(
                "`token_type` is `bot` or `user`",
                "seen",
                "iqkuvo7yv5.apidog.io/apidoc/project-347399/api-3545308",
            ),
        ),
        "square": (
            Fact(
                "`connect.squareupsandbox.com` for the sandbox, and its credentials work only there",
                "documented",
                "developer.squareup.com/docs/testing/create-and-authorize-sandbox-account",
            ),
            Fact("a JSON body, with the client's credentials in it", "documented", _SQUARE),
            Fact(
                "`expires_at` is a date; 30 days, or 24 hours if the token is short-lived",
                "documented",
                _SQUARE_TOKEN,
            ),
            Fact("with a client secret, a refresh returns the same refresh token", "documented", _SQUARE),
            Fact("without one (PKCE), refresh tokens rotate and need `rotates=True`", "documented", _SQUARE),
            Fact("`short_lived` is not sent, and without `expires_at` a day is assumed", "inferred"),
        ),
        "strava": (
            Fact(
                "a form, with the client's credentials in it; `expires_at` and `expires_in`",
                "documented",
                _STRAVA,
            ),
            Fact(
                "the refresh token may change with each refresh: the latest counts",
                "seen",
                "code.dblock.org/2018/11/17/dealing-with-strava-api-token-migration.html",
            ),
            Fact(
                "an error names a `resource` in a list: `RefreshToken`",
                "seen",
                "github.com/dreeveapp/dreeve/issues/1449",
            ),
            Fact(
                "or `AuthorizationCode`; a new code may be refused for two seconds",
                "seen",
                "github.com/basvandorst/StravaPHP/issues/96",
            ),
            Fact(
                "or `Application`, for a wrong client",
                "seen",
                "github.com/yihong0618/running_page/issues/697",
            ),
        ),
        "xero": (
            Fact("30 minutes; a refresh returns a new refresh token", "documented", _XERO),
            Fact("if its response is lost, the old one works for 30 minutes more", "documented", _XERO),
            Fact("a refresh token that is not used ends after 60 days", "documented", _XERO),
            Fact("Basic credentials", "seen", "community.xero.com/developer/discussion/105714701"),
        ),
        "zoho": (
            Fact(
                "an accounts server and an API host for each region",
                "documented",
                "bigin.com/developer/docs/apis/multi-dc.html",
            ),
            Fact(
                "the response has the API's address in `api_domain`, and so has `token.extra`",
                "documented",
                "zoho.com/contracts/api/getting-started/refreshing-access-tokens.html",
            ),
            Fact(
                "the parameters may be in the body",
                "documented",
                "zoho.com/workerly/developer-guide/access-refresh.html",
            ),
            Fact(
                "`Authorization: Bearer` instead of Zoho's own `Zoho-oauthtoken`",
                "documented",
                "zoho.com/accounts/protocol/oauth/use-access-token.html",
            ),
            Fact("one hour", "documented", _ZOHO),
            Fact("a client of another region is an invalid client", "documented", _ZOHO),
            Fact("`invalid_code` for a refresh token that has expired or been revoked", "documented", _ZOHO),
            Fact(
                "access denied means too many tokens (10 in 10 minutes): wait some minutes",
                "documented",
                _ZOHO,
            ),
            Fact("errors come with status 200", "seen", "github.com/Weble/ZohoBooksApi/issues/84"),
            Fact(
                "a refresh token does not expire",
                "documented",
                "zoho.com/bookings/help/api/v1/generatetokens.html",
            ),
            Fact("and a refresh returns no other", "documented", _ZOHO),
            Fact(
                "beside `expires_in_sec`, `expires_in` is in milliseconds",
                "documented",
                "zoho.com.cn/writer/help/api/v1/oauth-step4.html",
            ),
        ),
    }
)
"""The facts by vendor."""
