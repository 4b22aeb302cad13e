"""Training through Paddle's parameter server."""

from ssr.runtime import before_paddle

before_paddle(
    FLAGS_enable_pir_api="0",  # Paddle 3.0's new IR has no parameter server
    GLOG_minloglevel="2")  # warnings of brpc about what is handled here
