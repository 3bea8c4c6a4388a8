// Encodes and decodes with every codec, and compares the stack of each call, and the heap of what is made before, to the
// bounds that docs/guides/flight_software.md states.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <orbitsplit/calibrated.hpp>
#include <orbitsplit/codec.hpp>
#include <orbitsplit/encoder.hpp>
#include <orbitsplit/version.hpp>
#include <span>
#include <string>
#include <vector>

#include "measure.hpp"

namespace {

using orbitsplit::DType;

// Of docs/guides/flight_software.md.
constexpr std::size_t call_stack_bytes = 8 << 10;
constexpr std::size_t lossless_stack_bytes = 40 << 10;
constexpr std::size_t object_heap_bytes = 192 << 10;
constexpr std::size_t refusal_stack_bytes = 8 << 10;

constexpr std::size_t rows = 16;
constexpr std::size_t width = 640;

int failures = 0;

void check(bool is_so, const std::string& what) {
    if (is_so) return;
    ++failures;
    std::printf("failed: %s\n", what.c_str());
}

std::vector<float> smooth_activation() {
    std::vector<float> values(rows * width);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(0.01F * static_cast<float>(i));
    return values;
}

orbitsplit::CalibratedParameters parameters(bool has_tables, bool has_transform) {
    orbitsplit::CalibratedParameters made;
    made.key = {.codebook = 1, .cut = 2, .level = 3};
    made.step.assign(width, 0.125F);
    if (has_transform) made.hadamard = 128;
    if (!has_tables) return made;
    made.tables.resize(1);
    for (int code = -7; code <= 7; ++code) made.tables[0][static_cast<std::uint8_t>(code)] = 16;
    made.table_of_channel.assign(width, 0);
    return made;
}

// Prints what a call took, and checks it: no call allocates.
void report(const std::string& name, const char* call, const Usage& usage) {
    std::printf("%-21s %-7s stack %6zu bytes, %zu allocations\n", name.c_str(), call, usage.stack_bytes,
                usage.allocations);
    check(usage.stack_bytes <= (name == "lossless_bf16" ? lossless_stack_bytes : call_stack_bytes),
          name + ' ' + call + " takes more stack than the bound");
    check(usage.allocations == 0, name + ' ' + call + " allocates");
}

// Prints what an object of a codec keeps, for the measured shape.
void report_construction(const std::string& name, const char* what, const Usage& usage) {
    std::printf("%-21s %-7s heap  %6zu bytes\n", name.c_str(), what, usage.heap_bytes);
    check(usage.heap_bytes <= object_heap_bytes, name + ' ' + what + " takes more heap than the bound");
}

// A fixed or a calibrated codec; `codecs` is what its decoder is given beside the shape.
template <class Codec, class... Codecs>
void measure_codec(const std::string& name, const Codec& codec, const Codecs&... codecs) {
    const std::vector<float> values = smooth_activation();
    const auto data = std::as_bytes(std::span(values));
    const std::vector<std::int64_t> shape{rows, width};
    report_construction(name, "encoder", measure([&] { orbitsplit::Encoder(DType::float32, shape, codec); }));
    report_construction(name, "decoder",
                        measure([&] { orbitsplit::Decoder(DType::float32, shape, codecs...); }));
    orbitsplit::Encoder encoder(DType::float32, shape, codec);
    orbitsplit::Decoder decoder(DType::float32, shape, codecs...);
    std::vector<std::byte> frame(encoder.frame_bytes());
    std::vector<std::byte> decoded(decoder.data_bytes());
    std::size_t size = 0;
    report(name, "encode", measure([&] { size = encoder.encode(frame, data); }));
    frame.resize(size);
    report(name, "decode", measure([&] { decoder.decode(decoded, frame); }));
    check(orbitsplit::compress(data, DType::float32, shape, codec) == frame,
          name + " is not what compress gives");
}

void measure_calibrated(const char* name, orbitsplit::CalibratedParameters made) {
    const orbitsplit::CalibratedCodec codec(std::move(made));
    measure_codec(name, codec, codec);
}

// A damaged frame is an exception, whose memory and message are allocated.
void measure_refusal() {
    const std::vector<float> values(width, 0.5F);
    const std::vector<std::int64_t> shape{1, width};
    auto frame = orbitsplit::compress(std::as_bytes(std::span(values)), DType::float32, shape,
                                      orbitsplit::parse_codec("int8"));
    frame.back() ^= std::byte{1};
    orbitsplit::Decoder decoder(DType::float32, shape);
    std::vector<std::byte> out(decoder.data_bytes());
    bool is_refused = false;
    const Usage usage = measure([&] {
        try {
            decoder.decode(out, frame);
        } catch (const orbitsplit::CorruptFrameError&) {
            is_refused = true;
        }
    });
    std::printf("a damaged frame        refused stack %6zu bytes\n", usage.stack_bytes);
    check(is_refused, "a damaged frame is not refused");
    check(usage.stack_bytes <= refusal_stack_bytes, "a refusal takes more stack than the bound");
}

}  // namespace

int main() {
    std::printf("orbitsplit %s, kernels %s, float32 [%zu, %zu]\n", orbitsplit::version(),
                std::string(orbitsplit::isa()).c_str(), rows, width);
    for (const char* text : {"raw", "bf16", "int8", "int4", "topk:0.1", "lossless_bf16"})
        measure_codec(text, orbitsplit::parse_codec(text));
    measure_calibrated("calibrated", parameters(false, false));
    measure_calibrated("calibrated, coded", parameters(true, false));
    measure_calibrated("calibrated, Hadamard", parameters(true, true));
    measure_refusal();
    return failures;
}
