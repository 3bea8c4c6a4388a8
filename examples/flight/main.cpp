// A topology of one component and a test bench: messages in, frames out, and what the ground decodes of them.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "activation_compressor.hpp"

namespace {

constexpr std::size_t rows = 4;
constexpr std::size_t width = 640;

// Stands for the downlink: decodes what it gets, and keeps the largest error.
class Ground : public framework::BufferSendPort {
  public:
    explicit Ground(const std::vector<float>& sent) : sent_(sent) {}

    void send(framework::Buffer frame) override {
        const orbitsplit::Decoded decoded = orbitsplit::decompress(frame);
        const auto* values = reinterpret_cast<const float*>(decoded.data.data());
        for (std::size_t i = 0; i < sent_.size(); ++i)
            largest_error_ = std::fmax(largest_error_, std::fabs(values[i] - sent_[i]));
        std::printf("frame of %zu bytes, decoded with an error of at most %.4f\n", frame.size(),
                    static_cast<double>(largest_error_));
    }

    float largest_error() const { return largest_error_; }

  private:
    const std::vector<float>& sent_;
    float largest_error_ = 0;
};

class EventLog : public framework::EventPort {
  public:
    void log(framework::Event event, std::size_t value) override {
        constexpr const char* texts[] = {"compressed to", "refused a message of",
                                         "refused values of a message of"};
        std::printf("event: %s %zu bytes\n", texts[static_cast<std::size_t>(event)], value);
    }
};

}  // namespace

int main() {
    std::vector<float> activation(rows * width);
    for (std::size_t i = 0; i < activation.size(); ++i)
        activation[i] = std::sin(0.01F * static_cast<float>(i));
    const auto message = std::as_writable_bytes(std::span(activation));

    Ground ground(activation);
    EventLog events;
    ActivationCompressor component(rows, width, orbitsplit::parse_codec("int8"), ground, events);

    component.activation_in_handler(message);
    component.activation_in_handler(message.first(100));
    activation[7] = std::numeric_limits<float>::infinity();
    component.activation_in_handler(message);

    const ActivationCompressor::Telemetry& telemetry = component.telemetry();
    std::printf("%u messages, %u refused, %llu bytes in, %llu out\n", telemetry.messages, telemetry.refused,
                static_cast<unsigned long long>(telemetry.bytes_in),
                static_cast<unsigned long long>(telemetry.bytes_out));
    return telemetry.refused == 2 && ground.largest_error() < 0.005F ? EXIT_SUCCESS : EXIT_FAILURE;
}
