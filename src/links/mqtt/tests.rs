//! Against a real Mosquitto.
