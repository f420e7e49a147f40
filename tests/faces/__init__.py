"""gRPC, REST, CAMARA, SOAP and the command line, as their users call them."""
