// A program that embeds the core: plans a small problem, encodes an activation and decodes it.
#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <orbitsplit/orbitsplit.hpp>
#include <span>
#include <string_view>
#include <vector>

namespace {

orbitsplit::Problem two_nodes() {
    orbitsplit::Problem problem;
    problem.layers = {"a", "b", "c"};
    problem.nodes = {{.name = "n0", .memory_bytes = 2e9}, {.name = "n1", .memory_bytes = 2e9}};
    problem.layer_memory_bytes = {1e9, 1e9, 1e9};
    problem.layer_time_s = {1, 1, 1, 2, 2, 2};
    problem.cut_bytes = {4e6, 4e6};
    problem.bandwidth_bytes_per_s = {0, 1e6, 1e6, 0};
    problem.latency_s = {0, 0.5, 0.5, 0};
    problem.levels = {{.name = "raw"}, {.name = "int8", .ratio = 4}};
    problem.loss = {0, 0.1, 0, 0.1};
    problem.loss_budget = 0.1;
    return problem;
}

// A class of an exception is the same one in the library and here, also where the library is shared and this program
// hides its symbols.
bool is_refused(std::span<const std::byte> frame) {
    try {
        static_cast<void>(orbitsplit::decompress(frame));
    } catch (const orbitsplit::CorruptFrameError& error) {
        std::cout << "refused: " << error.what() << '\n';
        return true;
    }
    return false;
}

}  // namespace

int main() {
    std::cout << "orbitsplit " << orbitsplit::version() << '\n';
    if (std::string_view(orbitsplit::version()) != ORBITSPLIT_VERSION_STRING) return EXIT_FAILURE;

    // Two layers fit a node: [a b | c] takes 2 + 1 (a quarter of 4 s on the link) + 0.5 + 2 seconds.
    const orbitsplit::Solution solution = orbitsplit::solve(two_nodes());
    std::cout << orbitsplit::status_name(solution.status) << ": " << solution.objective_s << " s\n";
    if (solution.objective_s != 5.5 || solution.stages.size() != 2) return EXIT_FAILURE;

    const std::vector<float> activation{0.0F, 0.5F, -1.0F, 1.0F};
    const std::vector<std::int64_t> shape{1, 4};
    auto frame = orbitsplit::compress(std::as_bytes(std::span(activation)), orbitsplit::DType::float32, shape,
                                      orbitsplit::parse_codec("raw"));
    const orbitsplit::Decoded decoded = orbitsplit::decompress(frame);
    std::cout << frame.size() << " bytes on the wire\n";
    if (decoded.shape != shape || decoded.data.size() != 16) return EXIT_FAILURE;

    frame.back() ^= std::byte{1};
    return is_refused(frame) ? EXIT_SUCCESS : EXIT_FAILURE;
}
