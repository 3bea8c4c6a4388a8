// Compiled with -fno-exceptions -fno-rtti: our headers need neither. What the library throws then ends the program, so
// such a program gives it what is known to be valid, and inspects frames that may be damaged before they arrive here.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <orbitsplit/orbitsplit.hpp>
#include <vector>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this program is to be compiled with -fno-exceptions -fno-rtti"
#endif

int main() {
    const std::vector<float> activation(640, 0.25F);
    const std::vector<std::int64_t> shape{1, 640};
    const orbitsplit::Codec codec{.kind = orbitsplit::CodecKind::int8};
    const auto frame =
        orbitsplit::compress(std::as_bytes(std::span(activation)), orbitsplit::DType::float32, shape, codec);
    const orbitsplit::Decoded decoded = orbitsplit::decompress(frame);
    float first = 0;
    std::memcpy(&first, decoded.data.data(), sizeof first);
    std::printf("%zu bytes, the first value is %f\n", frame.size(), static_cast<double>(first));
    return frame.size() < 800 && first > 0.249F && first < 0.251F ? EXIT_SUCCESS : EXIT_FAILURE;
}
