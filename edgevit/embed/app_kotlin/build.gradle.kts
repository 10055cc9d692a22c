plugins {
    id("com.android.library")
    kotlin("android")
}

android {
    namespace = "edgevit"
    compileSdk = 35
    defaultConfig { minSdk = 26 }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    implementation("@DEPENDENCY@")
}
