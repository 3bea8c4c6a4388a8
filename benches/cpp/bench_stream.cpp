// How fast is the stream coder with static tables, and how close to the entropy? Normal symbols, streams of
// 256 rows of 640, one table or sixteen; minimum of `rounds`, one thread, every supported instruction set.
//
//     bench_stream [rounds]
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "codec/entropy/stream.hpp"
#include "orbitsplit/codec.hpp"

namespace {

using namespace orbitsplit;

constexpr std::size_t rows = 256;
constexpr std::size_t channels = 640;
constexpr std::size_t symbols = rows * channels;
constexpr std::size_t streams = 8;

using Codes = std::vector<std::uint8_t>;

struct Data {
    std::vector<Codes> codes;
    std::array<std::uint64_t, 256> counts{};
};

Data draw(double deviation) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal(0, deviation);
    Data data;
    for (std::size_t k = 0; k < streams; ++k) {
        Codes codes(symbols + rans::slack_bytes);
        for (std::size_t i = 0; i < symbols; ++i) {
            codes[i] = static_cast<std::uint8_t>(static_cast<int>(std::lround(normal(random))));
            ++data.counts[codes[i]];
        }
        data.codes.push_back(std::move(codes));
    }
    return data;
}

// Bits per symbol: the entropy of the symbols, and the cost by the table, including escapes and their bytes.
struct Entropy {
    double of_symbols = 0;
    double of_table = 0;
};

Entropy entropy_of(const Data& data, const stream::SymbolTable& table) {
    Entropy entropy;
    for (std::size_t s = 0; s < 256; ++s) {
        const double share = static_cast<double>(data.counts[s]) / (symbols * streams);
        if (share == 0) continue;
        const double expected = table.frequency[s] != 0 ? table.frequency[s] : table.escape;
        entropy.of_symbols -= share * std::log2(share);
        entropy.of_table += share * (8 - std::log2(expected) + (table.frequency[s] != 0 ? 0 : 8));
    }
    return entropy;
}

std::vector<std::byte> encode(stream::Encoder& encoder, const Codes& codes) {
    encoder.start(rows, channels);
    for (std::size_t group = rows / stream::group_rows; group-- > 0;)
        encoder.add_group(group, codes.data() + group * stream::group_rows * channels);
    std::vector<std::byte> out(encoder.size() + rans::slack_bytes);
    encoder.finish(out.data());
    return out;
}

stream::Decoder open(const stream::Tables& tables, const std::vector<std::byte>& bytes, Arena& memory) {
    return {tables, std::span(bytes).first(bytes.size() - rans::slack_bytes), bytes.size(), rows, channels,
            memory};
}

void decode_two(const stream::Tables& tables, const std::vector<std::byte>* bytes, Codes* codes) {
    Arena memory;
    stream::Decoder first = open(tables, bytes[0], memory);
    stream::Decoder second = open(tables, bytes[1], memory);
    stream::Decoder* const both[] = {&first, &second};
    for (std::size_t group = 0; group < rows / stream::group_rows; ++group) {
        const std::size_t at = group * stream::group_rows * channels;
        std::uint8_t* const here[] = {codes[0].data() + at, codes[1].data() + at};
        stream::Decoder::next_group(group, both, here);
    }
    first.finish();
    second.finish();
}

template <class Work>
double seconds(int rounds, Work work) {
    double best = HUGE_VAL;
    for (int round = 0; round < rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        work();
        best =
            std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
}

// Returns false if decoding did not recover the symbols.
bool measure(const Data& data, std::size_t tables_used, double deviation, int rounds) {
    const stream::SymbolTable table = stream::build_table(data.counts);
    const std::vector<stream::SymbolTable> equal(tables_used, table);
    std::vector<std::uint8_t> table_of_channel(channels);
    for (std::size_t c = 0; c < channels; ++c)
        table_of_channel[c] = static_cast<std::uint8_t>(c * 7 % tables_used);
    const stream::Tables tables =
        tables_used == 1 ? stream::Tables(table) : stream::Tables(equal, table_of_channel);
    Arena memory;
    stream::Encoder encoder(tables, rows, channels, memory);
    std::vector<std::vector<std::byte>> encoded(streams);
    const double encoding = seconds(rounds, [&] {
        for (std::size_t k = 0; k < streams; ++k) encoded[k] = encode(encoder, data.codes[k]);
    });
    std::vector<Codes> decoded(streams, Codes(symbols + rans::slack_bytes));
    const double decoding = seconds(rounds, [&] {
        for (std::size_t k = 0; k < streams; k += 2) decode_two(tables, &encoded[k], &decoded[k]);
    });
    std::size_t bytes = 0;
    for (const auto& stream : encoded) bytes += stream.size() - rans::slack_bytes;
    const double bits = 8.0 * static_cast<double>(bytes) / (symbols * streams);
    const Entropy entropy = entropy_of(data, table);
    std::printf("| %s | %zu | %.1f | %.2f | %.2f | %.3f | %+.2f %% | %+.2f %% |\n",
                std::string(isa()).c_str(), tables_used, deviation, symbols * streams / encoding / 1e9,
                symbols * streams / decoding / 1e9, bits, 100 * (bits / entropy.of_table - 1),
                100 * (bits / entropy.of_symbols - 1));
    for (std::size_t k = 0; k < streams; ++k)
        if (!std::equal(data.codes[k].begin(), data.codes[k].begin() + symbols, decoded[k].begin()))
            return false;
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 30;
    std::puts(
        "| set | tables | deviation | encode Gsymbol/s | decode Gsymbol/s | bits | over the table's "
        "entropy | over the symbols' |");
    std::puts("| --- | --- | --- | --- | --- | --- | --- | --- |");
    bool is_right = true;
    for (const std::string& name : isas()) {
        set_isa(name);
        for (const double deviation : {0.5, 1.0, 2.0, 4.0}) {
            const Data data = draw(deviation);
            for (const std::size_t tables : {1, 16})
                is_right = measure(data, tables, deviation, rounds) && is_right;
        }
    }
    if (!is_right) std::puts("decoding did not give the symbols back");
    return is_right ? 0 : 1;
}
