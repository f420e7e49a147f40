"""WS-Security headers."""

WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
PROFILE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0"


def token(user: str, password: str, kind: str = "", nonce: str = "", created: str = "", extra: str = "") -> str:
    """A Security header in the form that SOAP toolkits write."""
    of_type = f' Type="{PROFILE}#Password{kind}"' if kind else ""
    return (
        f'<e:Header><w:Security xmlns:w="{WSSE}" xmlns:u="{WSU}" e:mustUnderstand="1">'
        f'<u:Timestamp u:Id="t"><u:Created>{created}</u:Created></u:Timestamp>'
        f'<w:UsernameToken u:Id="x"><w:Username>{user}</w:Username><w:Password{of_type}>{password}</w:Password>'
        + (f"<w:Nonce>{nonce}</w:Nonce>" if nonce else "")
        + (f"<u:Created>{created}</u:Created>" if created else "")
        + f"</w:UsernameToken>{extra}</w:Security></e:Header>"
    )
