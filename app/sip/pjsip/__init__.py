"""The C side: PJSIP, reached by pjsua2 and cffi."""
