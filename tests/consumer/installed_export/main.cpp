// A header of fixed size, one axis, and four bytes for each of ten values.
#include <cstdlib>
#include <iostream>
#include <telemetry.hpp>

int main() {
    const std::size_t bytes = telemetry::raw_row_bytes(10);
    std::cout << bytes << " bytes for ten values\n";
    return bytes == 40 + 8 + 40 ? EXIT_SUCCESS : EXIT_FAILURE;
}
