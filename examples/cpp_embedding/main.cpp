// Plan a small problem and send an activation through a frame, from C++ alone.
//
// Shows how a problem is filled in, what `solve` returns, how much smaller int8 makes an activation and what error it
// brings, and that a frame whose bytes were changed on the way is refused.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <orbitsplit/orbitsplit.hpp>
#include <span>
#include <string>
#include <vector>

namespace {

constexpr std::size_t layers = 12;
constexpr std::size_t nodes = 3;

// Twelve layers of 1 GB, a fast node with little memory between two slow ones, links of 10 MB/s. At each cut the
// activation is sent as it is or, for a loss of 0.01, a quarter of its size.
orbitsplit::Problem chain() {
    orbitsplit::Problem problem;
    for (std::size_t layer = 0; layer < layers; ++layer) {
        problem.layers.push_back("layer " + std::to_string(layer));
    }
    problem.nodes = {{.name = "sat-0", .memory_bytes = 6e9},
                     {.name = "sat-1", .memory_bytes = 4e9},
                     {.name = "sat-2", .memory_bytes = 6e9}};
    problem.layer_memory_bytes.assign(layers, 1e9);
    for (const double seconds : {0.10, 0.04, 0.10}) {
        problem.layer_time_s.insert(problem.layer_time_s.end(), layers, seconds);
    }
    problem.cut_bytes.assign(layers - 1, 4e6);
    problem.bandwidth_bytes_per_s.assign(nodes * nodes, 10e6);
    problem.latency_s.assign(nodes * nodes, 0.005);
    problem.levels = {{.name = "raw"}, {.name = "int8", .ratio = 4}};
    for (std::size_t cut = 0; cut + 1 < layers; ++cut) {
        problem.loss.insert(problem.loss.end(), {0.0, 0.01});
    }
    problem.loss_budget = 0.02;
    problem.micro_batches = 8;
    return problem;
}

void plan() {
    const orbitsplit::Problem problem = chain();
    const orbitsplit::Solution solution = orbitsplit::solve(problem);
    std::cout << orbitsplit::status_name(solution.status) << ": " << solution.objective_s << " s for "
              << problem.micro_batches << " micro-batches\n";
    for (const orbitsplit::Stage& stage : solution.stages) {
        std::cout << "  " << problem.nodes[stage.node].name << " runs layers " << stage.start << " to "
                  << stage.stop - 1 << '\n';
    }
}

// Returns the frame of a smooth activation of 64 rows of 1024 float32 values, and prints its size and error.
std::vector<std::byte> send() {
    const std::vector<std::int64_t> shape{64, 1024};
    std::vector<float> activation(64 * 1024);
    for (std::size_t i = 0; i < activation.size(); ++i)
        activation[i] = std::sin(0.01F * static_cast<float>(i));
    const auto bytes = std::as_bytes(std::span(activation));
    const std::vector<std::byte> frame =
        orbitsplit::compress(bytes, orbitsplit::DType::float32, shape, orbitsplit::parse_codec("int8"));

    const orbitsplit::Decoded decoded = orbitsplit::decompress(frame);
    const auto* values = reinterpret_cast<const float*>(decoded.data.data());
    float error = 0;
    for (std::size_t i = 0; i < activation.size(); ++i)
        error = std::max(error, std::abs(values[i] - activation[i]));
    std::cout << "int8: " << frame.size() << " bytes for " << bytes.size() << ", error at most " << error
              << '\n';
    return frame;
}

void refuse(std::vector<std::byte> frame) {
    frame[frame.size() / 2] ^= std::byte{1};
    try {
        static_cast<void>(orbitsplit::decompress(frame));
    } catch (const orbitsplit::CorruptFrameError& error) {
        std::cout << "damaged frame refused: " << error.what() << '\n';
    }
}

}  // namespace

int main() {
    try {
        plan();
        refuse(send());
    } catch (const std::exception& error) {  // what solve and compress throw for wrong arguments
        std::cerr << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
